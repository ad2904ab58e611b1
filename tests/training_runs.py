"""Short training runs for tests."""

from pathlib import Path
from typing import Any

from training.datasets import load_dataset
from training.settings import TrainSettings
from training.trainer import EpochResult, RunResult, Trainer


class Silent:
    """Progress that shows nothing and keeps the epochs."""

    def __init__(self) -> None:
        self.epochs: list[EpochResult] = []

    def batch_done(self, epoch: int, loss: float) -> None:
        pass

    def epoch_done(self, result: EpochResult, *, best: bool) -> None:
        self.epochs.append(result)


def train_digits(folder: Path, **options: Any) -> RunResult:
    """Train on digits."""
    settings = TrainSettings(**options)
    return Trainer(settings, load_dataset(settings), folder, Silent()).fit()
