"""Training on images of CIFAR-10's shape, in fp32 and with automatic mixed precision.

The images are generated, so that nothing has to be downloaded: each class has its own pattern, under noise. The recipe is
CIFAR-10's. The first epoch is not counted; it fills caches and compiles.
"""

import io
import os
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.manifest import ImageInput
from bundle.preprocess import Pixels
from training.benchmark.speed import EpochClock
from training.datasets import Dataset
from training.settings import TrainSettings, resolve_settings
from training.trainer import Trainer
from trident.gpu_check.context import CheckSettings, StepRows, short

IMAGES: Final = 50_000
QUICK_IMAGES: Final = 320
CLASSES: Final = 10
SIZE: Final = 32
_NOISE: Final = 60
_VARIANTS: Final[tuple[dict[str, Any], ...]] = (
    {"precision": "fp32"},
    {"precision": "bf16"},
    {"precision": "fp16"},
    {"precision": "bf16", "compile": True},
)


def run(settings: CheckSettings, rows: StepRows) -> None:
    """Train with each precision; one row each."""
    dataset = generated_dataset(QUICK_IMAGES if settings.quick else IMAGES)
    workers = 0 if settings.quick else max(0, min(12, len(os.sched_getaffinity(0)) - 2))
    given: dict[str, Any] = {"data": "cifar10", "device": settings.device, "loader_workers": workers, "epochs": 3}
    if settings.quick:
        given |= {"model": "simple_cnn", "batch_size": 64, "epochs": 2}
    rows.add(run="data loader alone", **_loader_figures(resolve_settings(given), dataset))
    for variant in _VARIANTS[:2] if settings.quick else _VARIANTS:
        name = " ".join(["compile" if key == "compile" else str(value) for key, value in variant.items()])
        if settings.device == "cpu" and variant["precision"] == "fp16":
            rows.skip("training in fp16: it needs a GPU")
            continue
        try:
            rows.add(run=name, **_training_figures(resolve_settings(given | variant), dataset))
        except Exception as error:  # torch.compile needs a compiler; the other variants do not
            if not variant.get("compile"):
                raise
            rows.skip(f"training with torch.compile: {short(error)}")


def _loader_figures(settings: TrainSettings, dataset: Dataset) -> dict[str, Any]:
    """The rate at which augmented batches arrive if nothing is computed: training cannot be faster."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings, dataset, Path(folder), EpochClock())
        seconds = []
        for epoch in range(2):
            trainer.batches.epoch = epoch
            started = time.perf_counter()
            images = sum(len(labels) for _, labels in trainer.loader)
            seconds.append(time.perf_counter() - started)
    return {"images/s": images / seconds[-1], "s per epoch": seconds[-1], "test accuracy": None}


def _training_figures(settings: TrainSettings, dataset: Dataset) -> dict[str, Any]:
    clock = EpochClock()
    with tempfile.TemporaryDirectory() as folder:
        result = Trainer(settings, dataset, Path(folder), clock).fit()
    epoch_s = median([end - start for start, end in pairwise(clock.ends)][1:])
    images = len(dataset.train.labels)
    return {"images/s": images / epoch_s, "s per epoch": epoch_s, "test accuracy": result.test_accuracy}


@dataclass
class GeneratedSplit:
    """Images in memory: uint8 `[N, 3, SIZE, SIZE]`."""

    images: Pixels
    labels: npt.NDArray[np.int64]

    def encoded(self, index: int) -> bytes:
        """Return the image as a PNG."""
        buffer = io.BytesIO()
        Image.fromarray(self.images[index].transpose(1, 2, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    def pixels(self, index: int) -> Pixels:
        """Return the pixels: uint8 `[3, SIZE, SIZE]`."""
        pixels: Pixels = self.images[index]
        return pixels


def generated_dataset(images: int) -> Dataset:
    """A data set of CIFAR-10's shape with `images` training images; a tenth more for validation, and as many for the test."""
    random = np.random.default_rng(0)
    patterns = random.uniform(32, 224, (CLASSES, 3, 4, 4)).repeat(SIZE // 4, 2).repeat(SIZE // 4, 3)
    train, val, test = (_generated_split(patterns, count, random) for count in (images, images // 10, images // 10))
    labels = tuple(f"class-{number}" for number in range(CLASSES))
    spec = ImageInput(height=SIZE, width=SIZE, resize="stretch", filter="bilinear")
    return Dataset("cifar10", labels, spec, (0.5,) * 3, (0.25,) * 3, train, val, test)


def _generated_split(patterns: npt.NDArray[np.float64], count: int, random: np.random.Generator) -> GeneratedSplit:
    labels = np.arange(count, dtype=np.int64) % CLASSES
    images = np.empty((count, *patterns.shape[1:]), np.uint8)
    for index, label in enumerate(labels):
        noise = random.standard_normal(patterns.shape[1:], np.float32) * _NOISE
        images[index] = (patterns[label] + noise).clip(0, 255)
    return GeneratedSplit(images, labels)
