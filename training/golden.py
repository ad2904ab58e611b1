"""Golden pictures: what a bundle shows to prove that whoever serves it answers as eager PyTorch did."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from serving.bundle import describe_file
from serving.manifest import Golden
from serving.postprocess import Probabilities
from training.datasets import Split
from training.errors import ExportError

GOLDEN_PICTURES: Final = 16


def golden_pictures(split: Split, labels: Sequence[str]) -> list[tuple[str, bytes]]:
    """Pictures of the test set, in turn of every class."""
    by_class = [list(np.flatnonzero(split.labels == class_id)) for class_id in range(len(labels))]
    rows: list[int] = []
    while len(rows) < GOLDEN_PICTURES and any(by_class):
        rows += [int(of_class.pop(0)) for of_class in by_class if of_class]
    pictures = []
    for number, row in enumerate(rows[: max(GOLDEN_PICTURES, 8)]):
        data = split.encoded(row)
        pictures.append((f"{number:02d}{_suffix(data)}", data))
    if len(pictures) < 8:
        raise ExportError(f"the test set has {len(pictures)} pictures; a bundle needs at least 8 golden ones")
    return pictures


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
