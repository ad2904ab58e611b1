"""Batches for training and evaluation.

Randomness is a function of (seed, epoch, index) and of nothing else: the order of an epoch, and how a picture is
augmented, are the same for any number of loader workers, and after a restart.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from serving.manifest import ImageInput
from serving.preprocess import decode
from training.datasets import FileSplit, Split
from training.settings import DataName

Augment = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, Tensor]  # uint8 [N, 3, H, W] and int64 [N]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The training batches of one epoch after another, as lists of (epoch, index); set `epoch` before iterating."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        for start in range(0, self.size, self.batch_size):
            yield [(self.epoch, index) for index in order[start : start + self.batch_size]]


class AugmentedPictures(Dataset[tuple[Tensor, int]]):
    """Training pictures: `[(epoch, index)]` gives uint8 `[3, H, W]` and the class id."""

    def __init__(self, split: Split, augment: Augment, seed: int) -> None:
        self.split = split
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self.seed, epoch, index))
            return self.augment(_training_picture(self.split, index)), int(self.split.labels[index])


class PlainPictures(Dataset[tuple[Tensor, int]]):
    """Evaluation pictures, by serving's own preprocessing: uint8 `[3, H, W]` and the class id."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.split.pixels(index)), int(self.split.labels[index])


def training_loader(
    split: Split, augment: Augment, batch_size: int, seed: int, workers: int, *, pin_memory: bool
) -> tuple[DataLoader[Any], EpochBatches]:
    """The loader of augmented batches, and its sampler, whose `epoch` the trainer sets."""
    sampler = EpochBatches(len(split.labels), batch_size, seed)
    loader: DataLoader[Any] = DataLoader(
        AugmentedPictures(split, augment, seed),
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )
    return loader, sampler


def evaluation_loader(split: Split, batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """All of `split` in order."""
    return DataLoader(PlainPictures(split), batch_size=batch_size, num_workers=workers, persistent_workers=workers > 0)


def augmentation(data: DataName, spec: ImageInput) -> Augment:
    """What training does to a picture, uint8 in and out; each suits the pictures of its data set."""
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


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, so that neighbours are unrelated (splitmix64's mixing step)."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _training_picture(split: Split, index: int) -> Tensor:
    """Full size where pictures lie in files, since their augmentation crops; else the model's input size."""
    if isinstance(split, FileSplit):
        tensor: Tensor = v2.functional.pil_to_tensor(decode(split.encoded(index)))
        return tensor
    return torch.from_numpy(split.pixels(index))
