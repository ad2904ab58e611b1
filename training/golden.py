"""Golden pictures: what a bundle shows to prove that whoever serves it answers as eager PyTorch did."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np

from serving.bundle import describe_file
from serving.manifest import LEAST_GOLDEN, Golden
from serving.postprocess import Probabilities
from training.datasets import Split
from training.errors import ExportError

GOLDEN_PICTURES: Final = 16


def golden_pictures(splits: Mapping[str, Split], labels: Sequence[str]) -> list[tuple[str, bytes]]:
    """Names and bytes: up to 16 pictures of the test set, in turn of every class. Where that has fewer than a bundle
    needs, validation and then training pictures fill up, and are named so: what is proved is that servers compute what
    PyTorch computed, for which pictures that were learnt are as good.

    Raises:
        ExportError: there are not enough pictures in all of them.
    """
    pictures: list[tuple[str, bytes]] = []
    for name, wanted in (("test", GOLDEN_PICTURES), ("val", LEAST_GOLDEN), ("train", LEAST_GOLDEN)):
        for row in _by_turns(splits[name], len(labels))[: max(0, wanted - len(pictures))]:
            data = splits[name].encoded(row)
            of_split = "" if name == "test" else f"-{name}"
            pictures.append((f"{len(pictures):02d}{of_split}{_suffix(data)}", data))
    if len(pictures) < LEAST_GOLDEN:
        raise ExportError(f"the data has {len(pictures)} pictures; a bundle needs at least {LEAST_GOLDEN} golden ones")
    return pictures


def _by_turns(split: Split, classes: int) -> list[int]:
    """All rows of a split: the first picture of every class, then the second of every class, ..."""
    by_class = [np.flatnonzero(split.labels == class_id) for class_id in range(classes)]
    return [int(row) for turn in zip_longest(*by_class) for row in turn if row is not None]


def _suffix(data: bytes) -> str:
    """The usual file name suffix, so that the golden pictures can be looked at."""
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


def write_golden(folder: Path, pictures: Sequence[tuple[str, bytes]], probabilities: Probabilities) -> Golden:
    """Write the pictures and their probabilities (float32 `[pictures, classes]`) into a bundle's folder."""
    golden = folder / "golden"
    golden.mkdir()
    for name, data in pictures:
        (golden / name).write_bytes(data)
    np.save(golden / "probabilities.npy", probabilities.astype(np.float32), allow_pickle=False)
    return Golden(
        pictures=tuple(describe_file(golden / name, folder) for name, _ in pictures),
        probabilities=describe_file(golden / "probabilities.npy", folder),
    )
