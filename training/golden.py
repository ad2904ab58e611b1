"""Golden examples of a bundle: encoded images with the probabilities that eager PyTorch computed for them."""

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


def choose_golden_inputs(splits: Mapping[str, Split], labels: Sequence[str]) -> list[tuple[str, bytes]]:
    """Return names and encoded bytes of up to GOLDEN_IMAGES images of the test set, spread over the classes.

    If the test set has fewer images than a bundle needs, validation and then training images are added; their names end
    with `-val` or `-train`. Images that the model has seen in training are no worse here: the examples show that a server
    computes the same as PyTorch, not that the model is accurate.

    Raises:
        ExportError: the splits together have too few images.
    """
    images: list[tuple[str, bytes]] = []
    for name, target in (("test", GOLDEN_IMAGES), ("val", LEAST_GOLDEN), ("train", LEAST_GOLDEN)):
        for row in _round_robin(splits[name], len(labels))[: max(0, target - len(images))]:
            data = splits[name].encoded(row)
            split_suffix = "" if name == "test" else f"-{name}"
            images.append((f"{len(images):02d}{split_suffix}{_suffix(data)}", data))
    if len(images) < LEAST_GOLDEN:
        raise ExportError(
            f"the data set has {len(images)} images; a bundle needs at least {LEAST_GOLDEN} golden images"
        )
    return images


def _round_robin(split: Split, classes: int) -> list[int]:
    """Return all rows of a split: the first image of every class, then the second of every class, and so on."""
    by_class = [np.flatnonzero(split.labels == class_id) for class_id in range(classes)]
    return [int(row) for rows in zip_longest(*by_class) for row in rows if row is not None]


def _suffix(data: bytes) -> str:
    """Return the file name suffix of an encoded image, so that image viewers can open the file."""
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
    """Write the images and their probabilities (float32 `[images, classes]`) to `folder`/golden."""
    golden = folder / "golden"
    golden.mkdir()
    for name, data in images:
        (golden / name).write_bytes(data)
    np.save(golden / "probabilities.npy", probabilities.astype(np.float32), allow_pickle=False)
    return Golden(
        inputs=tuple(describe_file(golden / name, folder) for name, _ in images),
        probabilities=describe_file(golden / "probabilities.npy", folder),
    )
