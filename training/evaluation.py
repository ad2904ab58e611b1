"""Evaluation of a model on a split: loss, accuracy, confusion matrix and wrong predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from training.datasets import Split
from training.distributed import Processes
from training.loading import evaluation_loader

EVALUATION_BATCH: Final = 256


@dataclass(frozen=True)
class Mistake:
    """A misclassified image; `index` is its position in the split, `probability` that of the predicted class."""

    index: int
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    `loss` is the mean cross entropy in nats. `confusion` is int64 `[label, predicted]` and counts images. `mistakes`
    are those of this process, by decreasing probability.
    """

    loss: float
    confusion: Tensor
    mistakes: tuple[Mistake, ...]

    @property
    def accuracy(self) -> float:
        """Fraction of correctly classified images."""
        return int(self.confusion.diagonal().sum()) / int(self.confusion.sum())

    @property
    def class_accuracy(self) -> list[float | None]:
        """Recall per class; None for a class without images."""
        found, images = self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist()
        return [count / total if total else None for count, total in zip(found, images, strict=True)]


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], Tensor],
    split: Split,
    classes: int,
    device: torch.device,
    workers: int = 0,
    processes: Processes | None = None,
) -> Evaluation:
    """Evaluate `model`, which must be in evaluation mode, on all of `split`; the processes share the images."""
    processes = processes or Processes()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    mistakes: list[Mistake] = []
    rows = range(processes.rank, len(split.labels), processes.count)
    first = 0
    for images, labels in evaluation_loader(split, rows, EVALUATION_BATCH, workers):
        images, labels = images.to(device), labels.to(device)
        logits = model(images).float()
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
        probabilities, predicted = logits.softmax(1).max(1)
        confusion += torch.bincount(labels * classes + predicted, minlength=classes * classes)
        mistakes += [
            Mistake(rows[first + i], int(labels[i]), int(predicted[i]), float(probabilities[i]))
            for i in torch.nonzero(predicted != labels).flatten().tolist()
        ]
        first += len(labels)
    processes.sum(loss)
    processes.sum(confusion)
    return Evaluation(
        loss=float(loss) / len(split.labels),
        confusion=confusion.view(classes, classes).cpu(),
        mistakes=tuple(sorted(mistakes, key=lambda mistake: -mistake.probability)),
    )
