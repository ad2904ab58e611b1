"""Short training runs for tests."""

from pathlib import Path
from typing import Any

import torch

from training.datasets import load_dataset
from training.progress import EpochResult, RunResult
from training.run import run_training
from training.settings import TrainSettings


class SilentProgress:
    """A progress display that shows nothing and records the epochs."""

    def __init__(self) -> None:
        self.epochs: list[EpochResult] = []

    def batch_done(self, epoch: int, loss: float | None) -> None:
        pass

    def epoch_done(self, result: EpochResult, *, best: bool) -> None:
        self.epochs.append(result)


def train_digits(folder: Path, *, resume: bool = False, **options: Any) -> RunResult:
    """Train on digits in one thread: as fast for small models, and faster if other programs use the cores."""
    torch.set_num_threads(1)
    settings = TrainSettings(**options)
    return run_training(settings, load_dataset(settings), folder, SilentProgress(), resume=resume)
