"""Latency of exported files, for the manifest."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import torch

from bundle.manifest import Artefact
from bundle.preprocess import Pixels
from training.formats import read_model

WARM_UP_ROUNDS: Final = 2
TIMED_ROUNDS: Final = 15


def add_latencies(folder: Path, artefacts: Sequence[Artefact], image: Pixels) -> tuple[Artefact, ...]:
    """Return the artefacts with their latency and their speed-up over the first one.

    The latency is the median for one image (uint8 `[1, 3, H, W]`) in one thread. The rounds are interleaved, so all files
    are measured under the same load.
    """
    models = [
        read_model(artefact.format, folder / artefact.file, artefact.precision, threads=1) for artefact in artefacts
    ]
    seconds: list[list[float]] = [[] for _ in models]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(WARM_UP_ROUNDS + TIMED_ROUNDS):
            for model, times in zip(models, seconds, strict=True):
                started = time.perf_counter()
                model(image)
                if number >= WARM_UP_ROUNDS:
                    times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    latencies_ms = [median(times) * 1000 for times in seconds]
    return tuple(
        artefact.model_copy(update={"latency_ms": round(latency, 4), "speedup": round(latencies_ms[0] / latency, 3)})
        for artefact, latency in zip(artefacts, latencies_ms, strict=True)
    )
