"""What a run reports: the results of its epochs, its final result, and the interface of a progress display."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from training.evaluation import Evaluation


@dataclass(frozen=True)
class EpochResult:
    """One line of metrics.jsonl. Losses are mean cross entropies in nats, accuracies are fractions."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float

    def values(self) -> dict[str, float]:
        """Return all fields except the epoch's number, by name."""
        return {name: value for name, value in asdict(self).items() if name != "epoch"}


@dataclass(frozen=True)
class RunResult:
    """The result of a run. `test` is the evaluation of the best checkpoint on the test set."""

    checkpoint: Path
    best_epoch: int
    epochs: int
    val_accuracy: float
    test: Evaluation
    seconds: float
    stopped_early: bool

    @property
    def test_accuracy(self) -> float:
        """Fraction of correctly classified test images."""
        return self.test.accuracy


class Progress(Protocol):
    """A display of a run's progress."""

    def batch_done(self, epoch: int, loss: float | None) -> None:
        """One optimiser step has finished; `loss` is None where reading it would wait for the device."""

    def epoch_done(self, result: EpochResult, *, best: bool) -> None:
        """One epoch has finished; `best`: it has the lowest validation loss so far."""
