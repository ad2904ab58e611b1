"""Golden images: what a bundle shows to prove that whoever serves it answers as eager PyTorch did."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np

from bundle.manifest import LEAST_GOLDEN, Golden
from bundle.postprocess import Probabilities
from bundle.store import describe_file
from training.datasets import Split
from training.errors import ExportError

GOLDEN_IMAGES: Final = 16


def golden_inputs(splits: Mapping[str, Split], labels: Sequence[str]) -> list[tuple[str, bytes]]:
    """Names and bytes: up to 16 images of the test set, in turn of every class. Where that has fewer than a bundle
    needs, validation and then training images fill up, and are named so: what is proved is that servers compute what
    PyTorch computed, for which images that were learnt are as good.

    Raises:
        ExportError: there are not enough images in all of them.
    """
    images: list[tuple[str, bytes]] = []
    for name, wanted in (("test", GOLDEN_IMAGES), ("val", LEAST_GOLDEN), ("train", LEAST_GOLDEN)):
        for row in _by_turns(splits[name], len(labels))[: max(0, wanted - len(images))]:
            data = splits[name].encoded(row)
            of_split = "" if name == "test" else f"-{name}"
            images.append((f"{len(images):02d}{of_split}{_suffix(data)}", data))
    if len(images) < LEAST_GOLDEN:
        raise ExportError(f"the data has {len(images)} images; a bundle needs at least {LEAST_GOLDEN} golden ones")
    return images


def _by_turns(split: Split, classes: int) -> list[int]:
    """All rows of a split: the first image of every class, then the second of every class, ..."""
    by_class = [np.flatnonzero(split.labels == class_id) for class_id in range(classes)]
    return [int(row) for turn in zip_longest(*by_class) for row in turn if row is not None]


def _suffix(data: bytes) -> str:
    """The usual file name suffix, so that the golden images can be looked at."""
    signatures = {
        b"\x89PNG": ".png",
        b"\xff\xd8": ".jpg",
        b"GIF8": ".gif",
        b"RIFF": ".webp",
        b"BM": ".bmp",
        b"II*\0": ".tif",
        b"MM\0*": ".tif",
    }
    return next((suffix for signature, suffix in signatures.items() if data.startswith(signature)), ".img")


def write_golden(folder: Path, images: Sequence[tuple[str, bytes]], probabilities: Probabilities) -> Golden:
    """Write the images and their probabilities (float32 `[images, classes]`) into a bundle's folder."""
    golden = folder / "golden"
    golden.mkdir()
    for name, data in images:
        (golden / name).write_bytes(data)
    np.save(golden / "probabilities.npy", probabilities.astype(np.float32), allow_pickle=False)
    return Golden(
        inputs=tuple(describe_file(golden / name, folder) for name, _ in images),
        probabilities=describe_file(golden / "probabilities.npy", folder),
    )
