"""Measurement of the data loader: how many workers and prefetched batches are fastest for this data and machine."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import torch

from training.datasets import Dataset
from training.loading import EpochBatches, augmentation, training_loader
from training.settings import TrainSettings

SECONDS: Final = 2.0
# More workers must be faster by this factor to justify their memory.
MIN_GAIN: Final = 1.05


@dataclass(frozen=True)
class LoaderSpeed:
    """Augmented images per second, after the workers have started. `prefetch` is None without workers."""

    workers: int
    prefetch: int | None
    images_per_s: float


def measure_loaders(settings: TrainSettings, dataset: Dataset, seconds: float = SECONDS) -> Iterator[LoaderSpeed]:
    """Load images for `seconds` with each candidate, in order of increasing cost."""
    cores = len(os.sched_getaffinity(0))
    counts = sorted({0, 1, 2, cores // 2, cores})
    candidates: list[tuple[int, int | None]] = [(0, None)]
    candidates += [(workers, prefetch) for workers in counts if workers for prefetch in (2, 4)]
    for workers, prefetch in candidates:
        yield LoaderSpeed(workers, prefetch, _images_per_s(settings, dataset, workers, prefetch, seconds))


def fastest(measured: Sequence[LoaderSpeed]) -> LoaderSpeed:
    """Return the cheapest candidate whose speed is within MIN_GAIN of the fastest."""
    best = max(speed.images_per_s for speed in measured)
    return next(speed for speed in measured if speed.images_per_s * MIN_GAIN >= best)


def _images_per_s(
    settings: TrainSettings, dataset: Dataset, workers: int, prefetch: int | None, seconds: float
) -> float:
    batches = EpochBatches(len(dataset.train.labels), settings.batch_size, settings.seed)
    loader = training_loader(
        dataset.train,
        augmentation(settings.data, dataset.input),
        batches,
        workers,
        prefetch or settings.prefetch,
        pin_memory=torch.cuda.is_available(),
    )
    stream = _endless(loader, batches)
    for _ in islice(stream, 2 + 2 * workers):  # the workers start and fill their queues
        pass
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        images, _ = next(stream)
        count += len(images)
    return count / elapsed


def _endless(
    loader: torch.utils.data.DataLoader[tuple[torch.Tensor, torch.Tensor]], batches: EpochBatches
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from loader
        batches.epoch += 1
