"""How many loader processes, and how many batches ahead: measured on this machine with this data."""

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
# More processes must be so much faster to be worth their memory.
GAIN: Final = 1.05


@dataclass(frozen=True)
class LoaderSpeed:
    """Augmented images per second, after the workers have started. `prefetch` is 0 without workers."""

    workers: int
    prefetch: int
    images_per_s: float


def measure_loaders(settings: TrainSettings, dataset: Dataset, seconds: float = SECONDS) -> Iterator[LoaderSpeed]:
    """Each candidate for `seconds` of loading and nothing else, the simplest first."""
    cores = len(os.sched_getaffinity(0))
    counts = sorted({0, 1, 2, cores // 2, cores})
    for workers, prefetch in [(0, 0), *((count, ahead) for count in counts if count for ahead in (2, 4))]:
        yield LoaderSpeed(workers, prefetch, _images_per_s(settings, dataset, workers, prefetch, seconds))


def fastest(measured: Sequence[LoaderSpeed]) -> LoaderSpeed:
    """The simplest of those that are as good as the fastest."""
    best = max(speed.images_per_s for speed in measured)
    return next(speed for speed in measured if speed.images_per_s * GAIN >= best)


def _images_per_s(settings: TrainSettings, dataset: Dataset, workers: int, prefetch: int, seconds: float) -> float:
    batches = EpochBatches(len(dataset.train.labels), settings.batch_size, settings.seed)
    loader = training_loader(
        dataset.train,
        augmentation(settings.data, dataset.input),
        batches,
        workers,
        prefetch or 2,
        pin_memory=torch.cuda.is_available(),
    )
    stream = _endless(loader, batches)
    for _ in islice(stream, 2 + 2 * workers):  # the workers start, and fill their queues
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
