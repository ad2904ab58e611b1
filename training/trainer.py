"""The training loop: epochs, validation, early stopping, checkpoints.

Every random number depends only on (seed, epoch, step, process), not on earlier events. A run that is resumed from any
checkpoint therefore gives, on a CPU, bit for bit the same result as an uninterrupted run.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

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
from training.device import choose_device
from training.distributed import Processes
from training.errors import CheckpointError
from training.evaluation import Evaluation, evaluate
from training.loading import EpochBatches, augmentation, derive_seed, training_loader
from training.models import Classifier, build_network
from training.progress import EpochResult, Progress, RunResult
from training.settings import TrainSettings
from training.step import TrainingStep, memory_format
from training.tracking import Tracker
from training.weights import load_backbone

LOG_STEPS: Final = 10


class Trainer:
    """Trains one model on one data set. The methods are in the order in which they run."""

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
        self.device = choose_device(settings.device)
        self.model = self._new_model()
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
        self.training_step = TrainingStep(self.model, settings, self.device, self.batches.steps, self.processes)
        self.trackers: Sequence[Tracker] = ()
        self.step = 0  # optimiser steps done
        self.losses: list[Tensor] = []  # this process's share of the loss, per step of the current epoch
        self.results: list[EpochResult] = []

    @property
    def best_path(self) -> Path:
        """Path of the checkpoint of the epoch with the lowest validation loss."""
        return self.run_dir / "best.pt"

    @property
    def states(self) -> Path:
        """Folder of the run's states, for resuming."""
        return self.run_dir / "checkpoints"

    def resume(self) -> bool:
        """Continue from the newest state in the run's folder; return whether there is one.

        Raises:
            CheckpointError: the state is damaged, or the data set has changed.
        """
        files = state_files(self.states)
        if not files:
            return False
        state = load_state(files[-1])
        if state.fingerprint != self.dataset.fingerprint:
            raise CheckpointError(f"the data set {self.settings.data} has changed since {files[-1]} was written")
        for name, part in self.training_step.stateful_parts().items():
            part.load_state_dict(state.parts[name])
        self.step = state.step
        self.results = [EpochResult(**result) for result in state.results]
        share = 1.0 if self.processes.is_leader else 0.0
        self.losses = list((state.losses * share).to(self.device))
        return True

    def fit(self) -> RunResult:
        """Train until the last epoch, or until `patience` epochs have brought no improvement.

        Then evaluate the best checkpoint on the test set.
        """
        started = time.perf_counter()
        while len(self.results) < self.settings.epochs and not self._is_patience_exhausted():
            self._finish_epoch(self._run_epoch(len(self.results)))
        self.processes.wait_for_all()  # the leader writes the best checkpoint
        best = self._best_result()
        return RunResult(
            checkpoint=self.best_path,
            best_epoch=best.epoch,
            epochs=len(self.results),
            val_accuracy=best.val_accuracy,
            test=self._evaluate_best(),
            seconds=time.perf_counter() - started,
            stopped_early=len(self.results) < self.settings.epochs,
        )

    def _run_epoch(self, epoch: int) -> EpochResult:
        started = time.perf_counter()
        self.batches.epoch = epoch
        self.batches.first_step = self.step - epoch * self.batches.steps
        self.training_step.begin_epoch(epoch)
        shares = iter(self.loader)
        for step in range(self.batches.first_step, self.batches.steps):
            loss, gradient_norm = self.training_step.run(
                shares, self.batches.images(step), epoch, step, measure_norm=self.step % LOG_STEPS == 0
            )
            self._finish_step(epoch, step, loss, gradient_norm)
        train_loss = float(self._mean_losses().mean())
        self.losses = []
        validation = self._evaluate(self.training_step.evaluation_model(), self.dataset.val)
        return EpochResult(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            learning_rate=self.training_step.learning_rate,
            seconds=time.perf_counter() - started,
        )

    def _finish_step(self, epoch: int, step: int, loss: Tensor, gradient_norm: Tensor | None) -> None:
        """Report and log one optimiser step, and save the state if it is due."""
        self.losses.append(loss)
        self.step += 1
        self.progress.batch_done(epoch, float(loss) if self.device.type == "cpu" else None)
        if gradient_norm is not None:
            self._log_step(float(self.processes.sum(loss.clone())), float(gradient_norm))
        interval = self.settings.checkpoint_steps
        if interval and self.step % interval == 0 and step + 1 < self.batches.steps:
            self._save_state()

    def _finish_epoch(self, result: EpochResult) -> None:
        """Save the checkpoint and the state of one epoch, then log and report it."""
        self.results.append(result)
        is_best = result is self._best_result()
        if self.processes.is_leader:
            if is_best:
                save_checkpoint(self._checkpoint(result), self.best_path)
            for tracker in self.trackers:
                tracker.log("epoch", result.epoch, result.values())
        self._save_state()
        self.progress.epoch_done(result, best=is_best)

    def _log_step(self, loss: float, gradient_norm: float) -> None:
        learning_rate = self.training_step.learning_rate
        values = {"loss": loss, "learning_rate": learning_rate, "gradient_norm": gradient_norm}
        for tracker in self.trackers:
            tracker.log("step", self.step - 1, values)

    def _best_result(self) -> EpochResult:
        return min(self.results, key=lambda result: result.val_loss)

    def _is_patience_exhausted(self) -> bool:
        return bool(self.results) and len(self.results) - 1 - self._best_result().epoch >= self.settings.patience

    def _evaluate(self, model: Classifier, split: Split) -> Evaluation:
        classes = len(self.dataset.labels)
        return evaluate(model, split, classes, self.device, self.settings.loader_workers, self.processes)

    def _mean_losses(self) -> Tensor:
        """float64 `[steps]`: the mean loss of each step of the current epoch, over all processes."""
        return self.processes.sum(torch.stack(self.losses)) if self.losses else torch.zeros(0, dtype=torch.float64)

    def _save_state(self) -> None:
        losses = self._mean_losses()
        if self.processes.is_leader:
            state = RunState(
                settings=self.settings,
                fingerprint=self.dataset.fingerprint,
                step=self.step,
                losses=losses.cpu(),
                results=[asdict(result) for result in self.results],
                parts={name: part.state_dict() for name, part in self.training_step.stateful_parts().items()},
            )
            save_state(state, self.states, self.settings.keep_last)

    def _checkpoint(self, result: EpochResult) -> Checkpoint:
        weights = self.training_step.evaluation_model().state_dict()
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

    def _evaluate_best(self) -> Evaluation:
        """Evaluate the best checkpoint on the test set, and store the accuracy in it."""
        checkpoint = load_checkpoint(self.best_path)
        evaluation = self._evaluate(checkpoint.build().to(self.device), self.dataset.test)
        if self.processes.is_leader:
            save_checkpoint(replace(checkpoint, test_accuracy=evaluation.accuracy), self.best_path)
        return evaluation

    def _new_model(self) -> Classifier:
        settings, dataset = self.settings, self.dataset
        torch.manual_seed(derive_seed(settings.seed))
        classes = len(dataset.labels)
        self.normalisation = dataset.mean, dataset.std
        if settings.pretrained:
            published = load_backbone(settings.model, classes)
            self.normalisation = published.mean, published.std
            network = published.network
        else:
            network = build_network(settings.model, classes, dataset.input.height, settings.dropout)
        model = Classifier(network, *self.normalisation)
        layout = memory_format(settings)
        return model.to(self.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]
