"""A well-written training loop without resuming, several processes and tracking: the baseline for the trainer.

Model, data, augmentation, optimiser, schedule and validation are the same as the trainer's.
"""

import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from training.datasets import Dataset, Split
from training.loading import Augment, augmentation
from training.models import Classifier, build_network
from training.settings import TrainSettings


class _Augmented(TorchDataset[tuple[torch.Tensor, int]]):
    def __init__(self, split: Split, augment: Augment) -> None:
        self.images = [torch.from_numpy(split.pixels(i)) for i in range(len(split.labels))]
        self.labels = split.labels.tolist()
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.augment(self.images[index]), self.labels[index]


def train_plain_loop(settings: TrainSettings, dataset: Dataset, folder: Path) -> list[float]:
    """Train; return the seconds of each epoch, including validation and saving the best weights."""
    torch.manual_seed(settings.seed)
    network = build_network(settings.model, len(dataset.labels), dataset.input.height, settings.dropout)
    model = Classifier(network, dataset.mean, dataset.std)
    augmented = _Augmented(dataset.train, augmentation(settings.data, dataset.input))
    loader = DataLoader(augmented, settings.batch_size, shuffle=True)
    pixels = torch.stack([torch.from_numpy(dataset.val.pixels(i)) for i in range(len(dataset.val.labels))])
    validation = DataLoader(TensorDataset(pixels, torch.from_numpy(dataset.val.labels)), 256)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    warmup, steps = len(loader), settings.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / (steps - warmup))),
    )
    seconds, best = [], -1
    for _ in range(settings.epochs):
        started = time.perf_counter()
        model.train()
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            loss.item()
        model.eval()
        with torch.inference_mode():
            correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in validation)
        if correct > best:
            best = correct
            torch.save(model.state_dict(), folder / "best.pt")
        seconds.append(time.perf_counter() - started)
    return seconds
