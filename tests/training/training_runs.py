"""Short training runs for tests."""

from pathlib import Path
from typing import Any

import torch

from training.datasets import load_dataset
from training.run import run_training
from training.settings import TrainSettings
from training.trainer import EpochResult, RunResult


class Silent:
    """Progress that shows nothing and keeps the epochs."""

    def __init__(self) -> None:
        self.epochs: list[EpochResult] = []

    def batch_done(self, epoch: int, loss: float) -> None:
        pass

    def epoch_done(self, result: EpochResult, *, best: bool) -> None:
        self.epochs.append(result)


def train_digits(folder: Path, *, resume: bool = False, **options: Any) -> RunResult:
    """Train on digits; in one thread, which for models so small is as fast, and far faster beside other work."""
    torch.set_num_threads(1)
    settings = TrainSettings(**options)
    return run_training(settings, load_dataset(settings), folder, Silent(), resume=resume)
