"""One optimiser step: forward and backward over the parts of a batch, then the update of the weights."""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from training.device import mixed_precision
from training.distributed import Processes
from training.loading import Batch, derive_seed, seed_cpu
from training.models import Classifier
from training.optimisation import build_optimizer, build_schedule, moving_average
from training.settings import TrainSettings


class TrainingStep:
    """A model with its optimiser, schedule, gradient scaler and moving average."""

    def __init__(
        self,
        model: Classifier,
        settings: TrainSettings,
        device: torch.device,
        steps_per_epoch: int,
        processes: Processes,
    ) -> None:
        self.model = model
        self.settings = settings
        self.device = device
        self.processes = processes
        self.loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing, reduction="sum")
        self.autocast, self.scaler = mixed_precision(settings.precision, device)
        self.optimizer = build_optimizer(model, settings)
        self.schedule = build_schedule(self.optimizer, settings, steps_per_epoch)
        self.ema = moving_average(model, settings.ema_decay) if settings.ema_decay else None
        self._wrapped: nn.Module = model
        self._frozen: bool | None = None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step, for the head if the backbone has another."""
        return float(self.schedule.get_last_lr()[0])

    def stateful_parts(self) -> dict[str, Any]:
        """Return every object whose state changes during a run, by its name in a `RunState`."""
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}
        return parts if self.ema is None else parts | {"ema": self.ema}

    def evaluation_model(self) -> Classifier:
        """Return the model to validate and save, in evaluation mode: the moving average if there is one."""
        if self.ema is None:
            return self.model.eval()
        averaged: Any = self.ema.module
        return averaged.eval()  # type: ignore[no-any-return]

    def begin_epoch(self, epoch: int) -> None:
        """Switch to training mode, and freeze or unfreeze the backbone."""
        frozen = epoch < self.settings.freeze_epochs
        self.model.train()
        if self.settings.freeze_epochs:
            self.model.freeze_backbone(frozen)
        if frozen != self._frozen:
            self._frozen = frozen
            self._wrapped = self._wrap_model()

    def run(
        self, parts: Iterator[Batch], batch_size: int, epoch: int, step: int, *, measure_norm: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Update the weights once.

        Args:
            parts: this process's shares of the batch; `accumulate` of them are used.
            batch_size: images of the step, over all parts and processes.
            epoch: number of the epoch, for the random seed.
            step: number of the step within the epoch, for the random seed.
            measure_norm: return the norm of the gradient before clipping.

        Returns:
            This process's share of the mean loss (float64 scalar), and the gradient's norm or None.
        """
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(self.settings.accumulate):
            with record_function("wait for data"):
                images, labels = next(parts)
            self._seed_dropout(epoch, step, part)
            with self._gradient_sync(is_last=part + 1 == self.settings.accumulate):
                loss += self._forward_backward(images, labels, batch_size)
        with record_function("optimiser"):
            gradient_norm = self._clip_gradient(measure=measure_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        return loss, gradient_norm

    def _wrap_model(self) -> nn.Module:
        """Wrap the model for several processes and torch.compile.

        Both wrappers record which weights are trained when they are created, so a change needs new wrappers.
        """
        wrapped: nn.Module = self.model
        if self.processes.count > 1:
            wrapped = DistributedDataParallel(wrapped)
        if self.settings.compile:
            # It warns if CUDA is missing, also when training on a CPU.
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            wrapped = torch.compile(wrapped)  # type: ignore[assignment]
        return wrapped

    def _forward_backward(self, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        """Add the gradient of one part; return its share of the mean loss."""
        with record_function("forward"):
            layout = memory_format(self.settings)
            images = images.to(self.device, non_blocking=True, memory_format=layout)
            labels = labels.to(self.device, non_blocking=True)
            with self.autocast():
                share: Tensor = self.loss(self._wrapped(images), labels) / batch_size
        with record_function("backward"):
            # DistributedDataParallel averages the gradients over the processes; the factor turns that into their sum.
            self.scaler.scale(share * self.processes.count).backward()  # type: ignore[no-untyped-call]
        return share.detach()

    def _gradient_sync(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """The processes exchange gradients only in the last part of a step."""
        if is_last or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def _seed_dropout(self, epoch: int, step: int, part: int) -> None:
        seed = derive_seed(self.settings.seed, epoch, step, part, self.processes.rank + 1)
        seed_cpu(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _clip_gradient(self, *, measure: bool) -> Tensor | None:
        """Clip the gradient to `clip_norm` if set; with `measure`, return its norm before clipping."""
        limit = self.settings.clip_norm
        if limit is None and not measure:
            return None
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit or math.inf)
        return norm if measure else None


def memory_format(settings: TrainSettings) -> torch.memory_format:
    """Return the memory format of images and weights."""
    return torch.channels_last if settings.channels_last else torch.contiguous_format
