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
    """The optimiser over four groups at most: head and backbone, each with and without weight decay.

    Biases and the weights of norms are not decayed: they have one dimension, as no weight of a layer has. The
    backbone's learning rate is a share of the head's where the run starts from published weights. `fused` steps in one
    pass over the weights, on CPUs too, where it is not torch's default.
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
    """The learning rate as a function of the step, of which there are `epochs * steps_per_epoch`."""
    steps = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), steps - 1)
    match settings.schedule:
        case "onecycle":
            # The schedule counts one step more than it takes, so that the last one is not wasted on a rate of zero.
            rates = [group["lr"] for group in optimizer.param_groups]
            return OneCycleLR(optimizer, rates, total_steps=steps + 1, pct_start=max(warmup, 2) / (steps + 1))
        case "cosine":
            shape = cosine(warmup, steps)
        case "step":
            shape = stairs(settings.step_epochs * steps_per_epoch)
        case "constant":
            shape = stairs(steps + 1)
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup)) * shape(step))


def cosine(start: int, end: int) -> Callable[[int], float]:
    """1 until step `start`, then half a cosine to 0 at step `end` (Loshchilov and Hutter 2017)."""

    def factor(step: int) -> float:
        progress = (step - start) / max(1, end - start)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))

    return factor


def stairs(steps: int) -> Callable[[int], float]:
    """A tenth of it after every `steps` steps."""

    def factor(step: int) -> float:
        return float(0.1 ** (step // steps))

    return factor


def moving_average(model: Classifier, decay: float) -> AveragedModel:
    """A copy of `model` whose weights and statistics follow it: new = d * old + (1 - d) * model after each step, where d
    grows to `decay` as (1 + n) / (10 + n), so that the random start is forgotten (as in TensorFlow's
    ExponentialMovingAverage).
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
        else:  # a count of batches
            average.copy_(current)
