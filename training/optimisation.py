"""Optimisers, learning-rate schedules, and the moving average of the weights."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from training.models import Classifier
from training.settings import TrainSettings


def build_optimizer(model: Classifier, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimiser, with up to four parameter groups: head and backbone, each with and without weight decay.

    Biases and norm weights, which have one dimension, are not decayed. In a run from published weights, the backbone's
    learning rate is `backbone_rate` times the head's. `fused` updates all weights in one pass; it is not torch's default
    on CPUs.
    """
    head = {id(parameter) for parameter in model.head_parameters()} if settings.pretrained else None
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        rate = settings.learning_rate
        if head is not None and id(parameter) not in head:
            rate *= settings.backbone_rate
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    parameters = [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
    match settings.optimizer:
        case "sgd":
            nesterov = settings.momentum > 0
            return torch.optim.SGD(parameters, momentum=settings.momentum, nesterov=nesterov, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps_per_epoch: int) -> LRScheduler:
    """Return the learning-rate schedule over `epochs * steps_per_epoch` steps."""
    steps = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), steps - 1)
    match settings.schedule:
        case "onecycle":
            # With one step more than the run has, the last step has a learning rate above zero.
            rates = [group["lr"] for group in optimizer.param_groups]
            return OneCycleLR(optimizer, rates, total_steps=steps + 1, pct_start=max(warmup, 2) / (steps + 1))
        case "cosine":
            shape = cosine_decay(warmup, steps)
        case "step":
            shape = step_decay(settings.step_epochs * steps_per_epoch)
        case "constant":
            shape = step_decay(steps + 1)
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup)) * shape(step))


def cosine_decay(start: int, end: int) -> Callable[[int], float]:
    """Return a factor that is 1 until step `start`, then falls along half a cosine to 0 at step `end`.

    Loshchilov and Hutter 2017.
    """

    def factor(step: int) -> float:
        progress = (step - start) / max(1, end - start)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))

    return factor


def step_decay(steps: int) -> Callable[[int], float]:
    """Return a factor that starts at 1 and is divided by 10 after every `steps` steps."""

    def factor(step: int) -> float:
        return float(0.1 ** (step // steps))

    return factor


def moving_average(model: Classifier, decay: float) -> AveragedModel:
    """Return an exponential moving average of `model`'s weights and batch-norm statistics.

    After update n: average = d * average + (1 - d) * model, with d = min(decay, (1 + n) / (10 + n)). The smaller d at the
    start reduces the influence of the random initial weights (as in TensorFlow's ExponentialMovingAverage).
    """

    def update(averages: Any, currents: Any, number: Tensor | int) -> None:
        count = float(number)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        _lerp(averages, currents, weight)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _lerp(averages: Iterable[Tensor], currents: Iterable[Tensor], weight: float) -> None:
    for average, current in zip(averages, currents, strict=True):
        if average.is_floating_point():
            average.lerp_(current, weight)
        else:  # number of batches seen
            average.copy_(current)
