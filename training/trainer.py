"""The training run: epochs over augmented batches, validation, early stopping, checkpoints to serve and to go on from.

Every random number is a function of (seed, epoch, step, process), never of what happened before. So a run that was
killed and is resumed from any checkpoint ends, on a CPU, with the same bits as one that was not.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from training.checkpoint import (
    Checkpoint,
    RunState,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
    state_files,
)
from training.datasets import Dataset, Split
from training.distributed import Processes
from training.errors import CheckpointError, ModelError
from training.evaluation import Evaluation, evaluate
from training.loading import EpochBatches, augmentation, mixed_seed, seed_cpu, training_loader
from training.models import Classifier, build_network
from training.optimisation import build_optimizer, build_schedule, moving_average
from training.settings import TrainSettings
from training.tracking import Tracker
from training.weights import published_backbone

LOG_STEPS: Final = 10


@dataclass(frozen=True)
class EpochResult:
    """One line of metrics.jsonl. Losses are mean cross entropies (nats), accuracies fractions."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float

    def values(self) -> dict[str, float]:
        """All but the epoch's number, by name."""
        return {name: value for name, value in asdict(self).items() if name != "epoch"}


class Progress(Protocol):
    """Whoever shows the run to a person."""

    def batch_done(self, epoch: int, loss: float) -> None:
        """One optimiser step is done; `loss` is NaN where reading it would wait for the device."""

    def epoch_done(self, result: EpochResult, *, best: bool) -> None:
        """One epoch is done."""


@dataclass(frozen=True)
class RunResult:
    """What a run ended with. `test` is the best checkpoint's evaluation on the test set."""

    checkpoint: Path
    best_epoch: int
    epochs: int
    val_accuracy: float
    test: Evaluation
    seconds: float
    stopped_early: bool

    @property
    def test_accuracy(self) -> float:
        """A fraction."""
        return self.test.accuracy


class Trainer:
    """Trains one model on one data set. Methods stand in the order in which they run."""

    def __init__(
        self,
        settings: TrainSettings,
        dataset: Dataset,
        run_dir: Path,
        progress: Progress,
        processes: Processes | None = None,
    ) -> None:
        self.settings = settings
        self.dataset = dataset
        self.run_dir = run_dir
        self.progress = progress
        self.processes = processes or Processes()
        self.device = _device(settings.device)
        self.model = self._new_model()
        self.loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing, reduction="sum")
        self.autocast, self.scaler = _mixed_precision(settings.precision, self.device)
        self.batches = EpochBatches(
            len(dataset.train.labels), settings.batch_size, settings.seed, settings.accumulate, self.processes
        )
        self.loader = training_loader(
            dataset.train,
            augmentation(settings.data, dataset.input),
            self.batches,
            settings.loader_workers,
            settings.prefetch,
            pin_memory=self.device.type == "cuda",
        )
        self.optimizer = build_optimizer(self.model, settings)
        self.schedule = build_schedule(self.optimizer, settings, self.batches.steps)
        self.ema = moving_average(self.model, settings.ema_decay) if settings.ema_decay else None
        self.trackers: Sequence[Tracker] = ()
        self.step = 0  # optimiser steps done
        self.losses: list[Tensor] = []  # of the current epoch's steps: this process's share
        self.results: list[EpochResult] = []
        self._frozen: bool | None = None

    @property
    def best_path(self) -> Path:
        """The checkpoint of the epoch with the lowest validation loss."""
        return self.run_dir / "best.pt"

    @property
    def states(self) -> Path:
        """The folder of the states to go on from."""
        return self.run_dir / "checkpoints"

    def resume(self) -> bool:
        """Go on from the newest state in the run's folder; False if there is none.

        Raises:
            CheckpointError: it is damaged, or of another run.
        """
        files = state_files(self.states)
        if not files:
            return False
        state = load_state(files[-1])
        if state.fingerprint != self.dataset.fingerprint:
            raise CheckpointError(f"{files[-1]} was trained on other data than {self.settings.data} is now")
        for name, part in self._parts().items():
            part.load_state_dict(state.parts[name])
        self.step = state.step
        self.results = [EpochResult(**result) for result in state.results]
        share = 1.0 if self.processes.leads else 0.0
        self.losses = list((state.losses * share).to(self.device))
        return True

    def fit(self) -> RunResult:
        """Train until the last epoch or until `patience` epochs brought nothing; then measure the best model on the
        test set.
        """
        started = time.perf_counter()
        while len(self.results) < self.settings.epochs and not self._patience_is_over():
            result = self._epoch(len(self.results))
            self.results.append(result)
            is_best = result is self._best()
            if self.processes.leads:
                if is_best:
                    save_checkpoint(self._checkpoint(result), self.best_path)
                for tracker in self.trackers:
                    tracker.log("epoch", result.epoch, result.values())
            self._save_state()
            self.progress.epoch_done(result, best=is_best)
        self.processes.wait()  # for the leader to have written the best checkpoint
        best = self._best()
        return RunResult(
            checkpoint=self.best_path,
            best_epoch=best.epoch,
            epochs=len(self.results),
            val_accuracy=best.val_accuracy,
            test=self._test(),
            seconds=time.perf_counter() - started,
            stopped_early=len(self.results) < self.settings.epochs,
        )

    def _epoch(self, epoch: int) -> EpochResult:
        started = time.perf_counter()
        self._begin_epoch(epoch)
        shares = iter(self.loader)
        for step in range(self.batches.first_step, self.batches.steps):
            loss, gradient_norm = self._step(shares, epoch, step)
            self.losses.append(loss)
            self.step += 1
            self.progress.batch_done(epoch, float(loss) if self.device.type == "cpu" else math.nan)
            if gradient_norm is not None:
                self._log_step(float(self.processes.total(loss.clone())), float(gradient_norm))
            every = self.settings.checkpoint_steps
            if every and self.step % every == 0 and step + 1 < self.batches.steps:
                self._save_state()
        train_loss = float(self._total_losses().mean())
        self.losses = []
        validation = self._evaluate(self._judged(), self.dataset.val)
        return EpochResult(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            learning_rate=float(self.schedule.get_last_lr()[0]),
            seconds=time.perf_counter() - started,
        )

    def _begin_epoch(self, epoch: int) -> None:
        self.batches.epoch = epoch
        self.batches.first_step = self.step - epoch * self.batches.steps
        frozen = epoch < self.settings.freeze_epochs
        self.model.train()
        if self.settings.freeze_epochs:
            self.model.freeze_backbone(frozen)
        if frozen == self._frozen:
            return
        self._frozen = frozen
        # Which weights learn is known to both wrappers when they are made, so a change needs new ones.
        self.stepped: nn.Module = self.model
        if self.processes.count > 1:
            self.stepped = DistributedDataParallel(self.model)
        if self.settings.compile:
            # It warns of CUDA's absence where nobody asked for CUDA.
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            self.stepped = torch.compile(self.stepped)  # type: ignore[assignment]

    def _step(self, shares: Iterator[tuple[Tensor, Tensor]], epoch: int, step: int) -> tuple[Tensor, Tensor | None]:
        """One optimiser step: this process's share of the mean loss, and at some steps the gradient's norm."""
        batch_size = self.batches.images(step)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(self.settings.accumulate):
            with record_function("wait for the data"):
                images, labels = next(shares)
            with self._waiting_for_gradients(last=part + 1 == self.settings.accumulate):
                self._seed_dropout(epoch, step, part)
                with record_function("forward"):
                    images = images.to(self.device, non_blocking=True, memory_format=self._memory_format)
                    labels = labels.to(self.device, non_blocking=True)
                    with self.autocast():
                        share: Tensor = self.loss(self.stepped(images), labels) / batch_size
                with record_function("backward"):
                    # Gradients of several processes are averaged, and the mean over all images is wanted.
                    self.scaler.scale(share * self.processes.count).backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
        with record_function("optimiser"):
            gradient_norm = self._clipped_norm(wanted=self.step % LOG_STEPS == 0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        return loss, gradient_norm

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.settings.channels_last else torch.contiguous_format

    def _waiting_for_gradients(self, *, last: bool) -> AbstractContextManager[Any]:
        """Only a step's last part makes the processes exchange gradients."""
        if last or not isinstance(self.stepped, DistributedDataParallel):
            return nullcontext()
        return self.stepped.no_sync()

    def _seed_dropout(self, epoch: int, step: int, part: int) -> None:
        seed = mixed_seed(self.settings.seed, epoch, step, part, self.processes.rank + 1)
        seed_cpu(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _clipped_norm(self, *, wanted: bool) -> Tensor | None:
        """Clip the gradient if the settings say so; its norm before that, where it is known or `wanted`."""
        limit = self.settings.clip_norm
        if limit is None and not wanted:
            return None
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit or math.inf)
        return norm if wanted else None

    def _log_step(self, loss: float, gradient_norm: float) -> None:
        values = {
            "loss": loss,
            "learning_rate": float(self.schedule.get_last_lr()[0]),
            "gradient_norm": gradient_norm,
        }
        for tracker in self.trackers:
            tracker.log("step", self.step - 1, values)

    def _best(self) -> EpochResult:
        return min(self.results, key=lambda result: result.val_loss)

    def _patience_is_over(self) -> bool:
        return bool(self.results) and len(self.results) - 1 - self._best().epoch >= self.settings.patience

    def _judged(self) -> Classifier:
        """The model that is validated and kept: the moving average if there is one."""
        if self.ema is None:
            return self.model.eval()
        averaged: Any = self.ema.module
        return averaged.eval()  # type: ignore[no-any-return]

    def _evaluate(self, model: Classifier, split: Split) -> Evaluation:
        classes = len(self.dataset.labels)
        return evaluate(model, split, classes, self.device, self.settings.loader_workers, self.processes)

    def _total_losses(self) -> Tensor:
        """float64 `[steps]`: the mean loss of each step of the current epoch, over all processes."""
        return self.processes.total(torch.stack(self.losses)) if self.losses else torch.zeros(0, dtype=torch.float64)

    def _parts(self) -> dict[str, Any]:
        """What changes in a run, by its name in a state."""
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}
        return parts if self.ema is None else parts | {"ema": self.ema}

    def _save_state(self) -> None:
        losses = self._total_losses()
        if self.processes.leads:
            state = RunState(
                settings=self.settings,
                fingerprint=self.dataset.fingerprint,
                step=self.step,
                losses=losses.cpu(),
                results=[asdict(result) for result in self.results],
                parts={name: part.state_dict() for name, part in self._parts().items()},
            )
            save_state(state, self.states, self.settings.keep_last)

    def _checkpoint(self, result: EpochResult) -> Checkpoint:
        weights = self._judged().state_dict()
        return Checkpoint(
            settings=self.settings,
            labels=self.dataset.labels,
            input=self.dataset.input,
            mean=self.normalisation[0],
            std=self.normalisation[1],
            fingerprint=self.dataset.fingerprint,
            epoch=result.epoch,
            val_accuracy=result.val_accuracy,
            test_accuracy=None,
            weights={name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
        )

    def _test(self) -> Evaluation:
        """Measure the best checkpoint on the test set, once, and note it there."""
        checkpoint = load_checkpoint(self.best_path)
        evaluation = self._evaluate(checkpoint.build().to(self.device), self.dataset.test)
        if self.processes.leads:
            save_checkpoint(replace(checkpoint, test_accuracy=evaluation.accuracy), self.best_path)
        return evaluation

    def _new_model(self) -> Classifier:
        settings, dataset = self.settings, self.dataset
        torch.manual_seed(mixed_seed(settings.seed))
        classes = len(dataset.labels)
        self.normalisation = dataset.mean, dataset.std
        if settings.pretrained:
            weights = published_backbone(settings.model, classes)
            self.normalisation = weights.mean, weights.std
            network = weights.network
        else:
            network = build_network(settings.model, classes, dataset.input.height, settings.dropout)
        model = Classifier(network, *self.normalisation)
        return model.to(self.device, memory_format=self._memory_format)  # type: ignore[call-overload,no-any-return]


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda: this machine has no CUDA device that torch can use")
    cuda = wanted != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def _mixed_precision(
    precision: str, device: torch.device
) -> tuple[Callable[[], AbstractContextManager[Any]], torch.amp.GradScaler]:
    """The autocast context of a step, and the gradient scaler, which fp16 needs and the others leave out."""
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if dtype is None:
        return nullcontext, scaler
    return lambda: torch.autocast(device.type, dtype=dtype), scaler
