"""How good a model is on a split: loss, accuracy, confusions, and the images that it gets wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.datasets import Split
from training.distributed import Processes
from training.loading import evaluation_loader

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Mistake:
    """An image whose most probable class is not its own. `index` counts within the split."""

    index: int
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean cross entropy (nats); `confusion` int64 `[label, predicted]` counts images; `mistakes` are
    those that this process saw, the surest first.
    """

    loss: float
    confusion: Tensor
    mistakes: tuple[Mistake, ...]

    @property
    def accuracy(self) -> float:
        """The fraction of images whose most probable class is their own."""
        return int(self.confusion.diagonal().sum()) / int(self.confusion.sum())

    @property
    def class_accuracy(self) -> list[float]:
        """Per class, the fraction of its images that are found (recall); NaN for a class without images."""
        return (self.confusion.diagonal() / self.confusion.sum(1)).tolist()


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], Tensor],
    split: Split,
    classes: int,
    device: torch.device,
    workers: int = 0,
    processes: Processes | None = None,
) -> Evaluation:
    """Evaluate a model in evaluation mode on all of `split`, which is shared between the processes."""
    processes = processes or Processes()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    mistakes: list[Mistake] = []
    rows = range(processes.rank, len(split.labels), processes.count)
    at = 0
    for images, labels in evaluation_loader(split, rows, EVALUATION_BATCH, workers):
        images, labels = images.to(device), labels.to(device)
        logits = model(images).float()
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
        sureness, predicted = logits.softmax(1).max(1)
        confusion += torch.bincount(labels * classes + predicted, minlength=classes * classes)
        mistakes += [
            Mistake(rows[at + i], int(labels[i]), int(predicted[i]), float(sureness[i]))
            for i in torch.nonzero(predicted != labels).flatten().tolist()
        ]
        at += len(labels)
    processes.total(loss)
    processes.total(confusion)
    return Evaluation(
        loss=float(loss) / len(split.labels),
        confusion=confusion.view(classes, classes).cpu(),
        mistakes=tuple(sorted(mistakes, key=lambda mistake: -mistake.probability)),
    )
