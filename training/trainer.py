"""The training run: epochs over augmented batches, validation, early stopping, the best checkpoint."""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.datasets import Dataset
from training.errors import ModelError
from training.loading import augmentation, evaluation_loader, mixed_seed, training_loader
from training.models import Classifier, build_network
from training.settings import TrainSettings

RUNS: Final = Path("artifacts/runs")
EVALUATION_BATCH: Final = 256


@dataclass(frozen=True)
class EpochResult:
    """One line of metrics.jsonl. Losses are mean cross entropies (nats), accuracies fractions."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float


class Progress(Protocol):
    """Whoever shows the run to a person."""

    def batch_done(self, epoch: int, loss: float) -> None:
        """One optimiser step is done."""

    def epoch_done(self, result: EpochResult, *, best: bool) -> None:
        """One epoch is done."""


@dataclass(frozen=True)
class RunResult:
    """What a run ended with."""

    checkpoint: Path
    best_epoch: int
    epochs: int
    val_accuracy: float
    test_accuracy: float
    seconds: float
    stopped_early: bool


class Trainer:
    """Trains one model on one data set. Methods stand in the order in which they run."""

    def __init__(self, settings: TrainSettings, dataset: Dataset, run_dir: Path, progress: Progress) -> None:
        self.settings = settings
        self.dataset = dataset
        self.run_dir = run_dir
        self.progress = progress
        self.device = _device(settings.device)
        torch.manual_seed(mixed_seed(settings.seed))
        network = build_network(settings.model, len(dataset.labels), dataset.input.height)
        self.model = Classifier(network, dataset.mean, dataset.std).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = nn.CrossEntropyLoss()
        self.autocast, self.scaler = _mixed_precision(settings.precision, self.device)
        self.loader, self.batches = training_loader(
            dataset.train,
            augmentation(settings.data, dataset.input),
            settings.batch_size,
            settings.seed,
            settings.loader_workers,
            pin_memory=self.device.type == "cuda",
        )
        self.steps = settings.epochs * len(self.batches)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, warmup_then_cosine(round(settings.warmup_epochs * len(self.batches)), self.steps)
        )

    @property
    def best_path(self) -> Path:
        """The checkpoint of the epoch with the lowest validation loss."""
        return self.run_dir / "best.pt"

    def fit(self) -> RunResult:
        """Train until the last epoch or until `patience` epochs brought nothing; then measure the best model on the
        test set.
        """
        started = time.perf_counter()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "settings.json").write_text(self.settings.model_dump_json(indent=2) + "\n")
        best: EpochResult | None = None
        result = None
        with (self.run_dir / "metrics.jsonl").open("w", buffering=1) as log:
            for epoch in range(self.settings.epochs):
                result = self._epoch(epoch)
                is_best = best is None or result.val_loss < best.val_loss
                if is_best:
                    best = result
                    save_checkpoint(self._checkpoint(result), self.best_path)
                log.write(json.dumps(asdict(result)) + "\n")
                self.progress.epoch_done(result, best=is_best)
                if best is not None and epoch - best.epoch >= self.settings.patience:
                    break
        assert best is not None
        assert result is not None
        test_accuracy = self._test()
        return RunResult(
            checkpoint=self.best_path,
            best_epoch=best.epoch,
            epochs=result.epoch + 1,
            val_accuracy=best.val_accuracy,
            test_accuracy=test_accuracy,
            seconds=time.perf_counter() - started,
            stopped_early=result.epoch + 1 < self.settings.epochs,
        )

    def _epoch(self, epoch: int) -> EpochResult:
        started = time.perf_counter()
        self.batches.epoch = epoch
        self.model.train()
        losses: list[Tensor] = []
        for step, (images, labels) in enumerate(self.loader):
            torch.manual_seed(mixed_seed(self.settings.seed, epoch, step, 1))  # dropout: a function of the step alone
            loss = self._step(images, labels)
            losses.append(loss)
            self.progress.batch_done(epoch, float(loss) if self.device.type == "cpu" else math.nan)
        val_loss, val_accuracy = evaluate(
            self.model, evaluation_loader(self.dataset.val, EVALUATION_BATCH), self.device
        )
        return EpochResult(
            epoch=epoch,
            train_loss=float(torch.stack(losses).mean()),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=float(self.schedule.get_last_lr()[0]),
            seconds=time.perf_counter() - started,
        )

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        labels = labels.to(self.device, non_blocking=True)
        with self.autocast():
            loss: Tensor = self.loss(self.model(images), labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.detach()

    def _checkpoint(self, result: EpochResult) -> Checkpoint:
        return Checkpoint(
            settings=self.settings,
            labels=self.dataset.labels,
            input=self.dataset.input,
            mean=self.dataset.mean,
            std=self.dataset.std,
            fingerprint=self.dataset.fingerprint,
            epoch=result.epoch,
            val_accuracy=result.val_accuracy,
            test_accuracy=None,
            weights={name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()},
        )

    def _test(self) -> float:
        """Measure the best checkpoint on the test set, once, and note it there."""
        checkpoint = load_checkpoint(self.best_path)
        model = checkpoint.build().to(self.device)
        _, accuracy = evaluate(model, evaluation_loader(self.dataset.test, EVALUATION_BATCH), self.device)
        save_checkpoint(replace(checkpoint, test_accuracy=accuracy), self.best_path)
        return accuracy


@torch.inference_mode()
def evaluate(model: Classifier, loader: DataLoader[Any], device: torch.device) -> tuple[float, float]:
    """Mean cross entropy (nats) and accuracy (fraction) over a loader of plain pictures."""
    model.eval()
    loss = torch.zeros((), device=device)
    right = torch.zeros((), dtype=torch.int64, device=device)
    count = 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
        right += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return float(loss) / count, int(right) / count


def warmup_then_cosine(warmup_steps: int, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at a step: linear from 0, then half a cosine to 0 (Loshchilov and Hutter 2017)."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda: this machine has no CUDA device that torch can use")
    return torch.device(wanted)


def _mixed_precision(precision: str, device: torch.device) -> tuple[Callable[[], Any], torch.amp.GradScaler]:
    """The autocast context of a step, and the gradient scaler, which fp16 needs and the others leave out."""
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if dtype is None:
        return nullcontext, scaler
    return lambda: torch.autocast(device.type, dtype=dtype), scaler
