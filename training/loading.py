"""Batches for training and evaluation.

Randomness depends only on (seed, epoch, index). The order of the images and their augmentation are the same for any
number of loader workers, and after a restart.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from bundle.manifest import ImageInput
from bundle.preprocess import decode
from training.datasets import FileSplit, Split
from training.distributed import Processes
from training.errors import DataError
from training.settings import DataName

Augment = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, Tensor]  # uint8 [N, 3, H, W] and int64 [N]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The training batches of one epoch, as lists of (epoch, index).

    Each step's images are divided into `parts` (gradient accumulation), and each part between the processes. Iterating
    yields this process's shares, part by part. The order of the images does not depend on the number of parts or
    processes. Set `epoch` and `first_step` before iterating. The last batch is dropped if a share of it would have fewer
    than two images, the minimum for batch norm.

    Raises:
        DataError: a step has fewer images than shares.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, parts: int = 1, processes: Processes | None = None
    ) -> None:
        self.size = size
        self.batch_size = min(batch_size, size)
        self.seed = seed
        self.parts = parts
        self.processes = processes or Processes()
        self.epoch = 0
        self.first_step = 0
        shares = parts * self.processes.count
        if self.batch_size < shares:
            raise DataError(f"{self.batch_size} images per step cannot be divided into {shares} shares")
        remainder = size % self.batch_size
        self.steps = size // self.batch_size + (remainder >= 2 * shares)

    def __len__(self) -> int:
        """Number of this process's shares from `first_step` to the end of the epoch."""
        return (self.steps - self.first_step) * self.parts

    def images(self, step: int) -> int:
        """Number of images in step `step` of an epoch, over all processes and parts."""
        return min(self.batch_size, self.size - step * self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        stride = self.parts * self.processes.count
        for step in range(self.first_step, self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            for part in range(self.parts):
                first = part * self.processes.count + self.processes.rank
                yield [(self.epoch, index) for index in batch[first::stride]]


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """Augmented training images: `[(epoch, index)]` is uint8 `[3, H, W]` and the class id."""

    def __init__(self, split: Split, augment: Augment, seed: int) -> None:
        self.split = split
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    @torch.inference_mode()  # saves a quarter of the time: nothing is recorded for gradients
    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Tensor, int]]:
        """Return a batch.

        Uses one thread, because an image is too small for several. Restores the process's random state afterwards.
        """
        threads, state = torch.get_num_threads(), torch.default_generator.get_state()
        torch.set_num_threads(1)
        try:
            return [self._augmented(epoch, index) for epoch, index in keys]
        finally:
            torch.default_generator.set_state(state)
            torch.set_num_threads(threads)

    def _augmented(self, epoch: int, index: int) -> tuple[Tensor, int]:
        seed_cpu(derive_seed(self.seed, epoch, index))
        return self.augment(_training_image(self.split, index)), int(self.split.labels[index])


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Evaluation images, preprocessed as in serving: uint8 `[3, H, W]` and the class id."""

    def __init__(self, split: Split, rows: Sequence[int]) -> None:
        self.split = split
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = self.rows[position]
        return torch.from_numpy(self.split.pixels(index)), int(self.split.labels[index])


def training_loader(
    split: Split,
    augment: Augment,
    batches: EpochBatches,
    workers: int = 0,
    prefetch: int = 2,
    *,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Return a loader of augmented batches: uint8 `[N, 3, H, W]` and int64 `[N]`."""
    return DataLoader(
        AugmentedImages(split, augment, batches.seed),
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )


def evaluation_loader(split: Split, rows: Sequence[int], batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """Return a loader of the images in `rows` of `split`, in that order."""
    return DataLoader(PlainImages(split, rows), batch_size=batch_size, num_workers=workers)


def augmentation(data: DataName, spec: ImageInput) -> Augment:
    """Return the augmentation for a data set; its input and output are uint8 images."""
    size = [spec.height, spec.width]
    transform: Augment
    match data:
        case "digits":
            transform = v2.RandomAffine(degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1))
        case "cifar10":
            transform = v2.Compose([v2.RandomCrop(size, padding=size[0] // 8), v2.RandomHorizontalFlip()])
        case "folder":
            crop = v2.RandomResizedCrop(size, scale=(0.35, 1), antialias=True)
            colors = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
            transform = v2.Compose([crop, v2.RandomHorizontalFlip(), colors])
    return transform


def seed_cpu(seed: int) -> None:
    """Seed torch's CPU generator. `torch.manual_seed` also stores a stack trace per call on machines without CUDA."""
    torch.default_generator.manual_seed(seed)


def derive_seed(*numbers: int) -> int:
    """Combine several numbers into one 63-bit seed with splitmix64's mixing step; similar inputs give unrelated seeds."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _training_image(split: Split, index: int) -> Tensor:
    """Return the image to augment: in full size if it comes from a file, because its augmentation crops."""
    if isinstance(split, FileSplit):
        tensor: Tensor = v2.functional.pil_to_tensor(decode(split.encoded(index)))
        return tensor
    return torch.from_numpy(split.pixels(index))
