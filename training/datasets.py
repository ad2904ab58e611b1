"""Data sets: encoded images with labels, split into train, val and test.

`digits`   1797 handwritten digits, 8x8, from scikit-learn's wheel; works offline.
`cifar10`  50,000 + 10,000 images, 32x32, from torchvision; downloaded unless `data_dir` contains them.
`folder`   the user's images: `data_dir/{train,val,test}/<label>/*.jpg`, or `data_dir/<label>/*.jpg`, which is split here.
           If only one of `val` and `test` exists, it is the test set, and the validation set is split from `train`.

The splits do not depend on the run's seed, so runs are comparable.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.manifest import LEAST_GOLDEN, ImageInput
from bundle.preprocess import Pixels, preprocess
from training.errors import DataError
from training.settings import DataName, TrainSettings

SPLIT_SEED: Final = 0
IMAGE_SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif"}
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


class Split(Protocol):
    """Images with labels (class ids, int64 `[N]`); an index always refers to the same image."""

    labels: npt.NDArray[np.int64]

    def encoded(self, index: int) -> bytes:
        """Return the encoded image, as a client would send it."""

    def pixels(self, index: int) -> Pixels:
        """Return uint8 `[3, H, W]`: `encoded(index)` after the preprocessing of serving."""


@dataclass(frozen=True)
class Dataset:
    """A data set with its splits. `mean` and `std` are per channel, for pixels scaled to 0..1."""

    name: DataName
    labels: tuple[str, ...]
    input: ImageInput
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    val: Split
    test: Split

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all images and labels, in order."""
        digest = hashlib.sha256(repr((self.labels, self.input.model_dump())).encode())
        for split in self.splits.values():
            digest.update(split.labels.tobytes())
            for index in range(len(split.labels)):
                digest.update(hashlib.sha256(split.encoded(index)).digest())
        return digest.hexdigest()


class ArraySplit:
    """Images in memory, as one uint8 array `[N, h, w]` (gray) or `[N, h, w, 3]` (RGB)."""

    def __init__(self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], spec: ImageInput) -> None:
        self.images = images
        self.labels = labels
        self.spec = spec
        self._cache: list[Pixels | None] = [None] * len(labels)

    def encoded(self, index: int) -> bytes:
        """Return the image as a PNG."""
        buffer = io.BytesIO()
        Image.fromarray(self.images[index]).save(buffer, "PNG")
        return buffer.getvalue()

    def pixels(self, index: int) -> Pixels:
        """Return the pixels of the encoded image, so that training and serving see the same pixels."""
        cached = self._cache[index]
        if cached is None:
            cached = self._cache[index] = preprocess(self.encoded(index), self.spec)
        return cached


class FileSplit:
    """Image files, decoded on demand."""

    def __init__(self, paths: Sequence[Path], labels: npt.NDArray[np.int64], spec: ImageInput) -> None:
        self.paths = paths
        self.labels = labels
        self.spec = spec

    def encoded(self, index: int) -> bytes:
        """Return the content of the file."""
        return self.paths[index].read_bytes()

    def pixels(self, index: int) -> Pixels:
        """Return the decoded and resized pixels."""
        return preprocess(self.encoded(index), self.spec)


def load_dataset(settings: TrainSettings) -> Dataset:
    """Load the data set named in `settings`.

    Raises:
        DataError: it is missing or unusable.
    """
    match settings.data:
        case "digits":
            return _digits(settings.image_size or 32)
        case "cifar10":
            return _cifar10(settings.data_dir or Path("data"), settings.image_size or 32)
        case "folder":
            if settings.data_dir is None:
                raise DataError("--data folder needs --data-dir, a folder with one subfolder of images per label")
            return _folder(settings.data_dir, settings.image_size or 224)


def _digits(size: int) -> Dataset:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    spec = ImageInput(height=size, width=size, resize="stretch", filter="bilinear")
    rows = _split_by_class(labels, val=0.1, test=0.2)
    train, val, test = (ArraySplit(images[chosen], labels[chosen], spec) for chosen in rows)
    pixels = np.stack([train.pixels(i) for i in range(len(train.labels))]) / 255
    mean, std = float(pixels.mean()), float(pixels.std())
    names = tuple(str(name) for name in bunch.target_names)
    return Dataset("digits", names, spec, (mean,) * 3, (std,) * 3, train, val, test)


def _cifar10(root: Path, size: int) -> Dataset:
    from torchvision.datasets import CIFAR10

    parts = []
    for is_train in (True, False):
        try:
            parts.append(CIFAR10(str(root), train=is_train, download=False))
        except RuntimeError:
            try:
                parts.append(CIFAR10(str(root), train=is_train, download=True))
            except Exception as error:
                raise DataError(
                    f"CIFAR-10 is not in {root} and could not be downloaded ({error}). "
                    f"Put cifar-10-python.tar.gz there, or name its folder with --data-dir."
                ) from error
    full, test = parts
    spec = ImageInput(height=size, width=size, resize="stretch", filter="bilinear")
    labels = np.asarray(full.targets, dtype=np.int64)
    train_rows, val_rows, _ = _split_by_class(labels, val=0.1, test=0)
    return Dataset(
        "cifar10",
        tuple(full.classes),
        spec,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        train=ArraySplit(full.data[train_rows], labels[train_rows], spec),
        val=ArraySplit(full.data[val_rows], labels[val_rows], spec),
        test=ArraySplit(test.data, np.asarray(test.targets, dtype=np.int64), spec),
    )


def _folder(root: Path, size: int) -> Dataset:
    spec = ImageInput(height=size, width=size, resize="crop", filter="bilinear", shorter_side=round(size / 0.875))
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    given = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if not given:
        names = _label_folders(root)
        paths, labels = _scan(root, names)
        rows = _split_by_class(labels, val=0.1, test=0.1)
        if len(paths) < LEAST_GOLDEN:
            raise DataError(f"{root} has {len(paths)} images; an exported model needs at least {LEAST_GOLDEN}")
        train, val, test = (_part(paths, labels, chosen, spec) for chosen in rows)
    elif "train" in given and len(given) > 1:
        names = _label_folders(given["train"])
        scanned = {name: _scan(path, names) for name, path in given.items()}
        if len(given) == 3:
            train, val, test = (FileSplit(*scanned[name], spec) for name in ("train", "val", "test"))
        else:  # the held-out part must not choose the best checkpoint, so it is used for the test only
            paths, labels = scanned.pop("train")
            train_rows, val_rows, _ = _split_by_class(labels, val=0.1, test=0)
            train, val = (_part(paths, labels, chosen, spec) for chosen in (train_rows, val_rows))
            ((_, held_out),) = scanned.items()
            test = FileSplit(*held_out, spec)
    else:
        raise DataError(
            f"{root} has only {' and '.join(given)}; it needs train with val or test, or one folder per label"
        )
    return Dataset("folder", tuple(names), spec, IMAGENET_MEAN, IMAGENET_STD, train, val, test)


def _part(
    paths: Sequence[Path], labels: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], spec: ImageInput
) -> FileSplit:
    return FileSplit([paths[i] for i in rows], labels[rows], spec)


def _label_folders(root: Path) -> list[str]:
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{root} must hold at least two folders of images, one per label; it has {len(names)}")
    return names


def _scan(root: Path, names: Sequence[str]) -> tuple[list[Path], npt.NDArray[np.int64]]:
    paths: list[Path] = []
    labels: list[int] = []
    for class_id, name in enumerate(names):
        files = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        paths += files
        labels += [class_id] * len(files)
    if not paths:
        raise DataError(f"no images in {root}; supported are {', '.join(sorted(IMAGE_SUFFIXES))}")
    return paths, np.asarray(labels, dtype=np.int64)


def _split_by_class(labels: npt.NDArray[np.int64], val: float, test: float) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the row numbers of train, val and test; each class has the same share of every part.

    Raises:
        DataError: a class has too few images for all parts.
    """
    random = np.random.default_rng(SPLIT_SEED)
    parts: tuple[list[npt.NDArray[np.int64]], ...] = ([], [], [])
    for class_id in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == class_id))
        test_end = max(1, round(len(rows) * test)) if test else 0
        val_end = test_end + max(1, round(len(rows) * val))
        if val_end >= len(rows):
            raise DataError(f"class {class_id} has {len(rows)} images, too few to split into train, val and test")
        for part, chosen in zip(parts, (rows[val_end:], rows[test_end:val_end], rows[:test_end]), strict=True):
            part.append(chosen)
    return tuple(np.sort(np.concatenate(part)) for part in parts)
