"""The device and the precision of a training run."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from training.errors import ModelError


def choose_device(name: str) -> torch.device:
    """Return the device for the setting `device`: auto, cpu or cuda.

    Raises:
        ModelError: cuda is requested but not available.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda: torch finds no CUDA device on this machine")
    cuda = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def mixed_precision(
    precision: str, device: torch.device
) -> tuple[Callable[[], AbstractContextManager[Any]], torch.amp.GradScaler]:
    """Return a factory of autocast contexts, and the gradient scaler, which is enabled for fp16 only.

    Args:
        precision: the setting of that name; auto is fp32 on CPUs, and bf16 or fp16 on CUDA.
        device: the device of the run.
    """
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if dtype is None:
        return nullcontext, scaler
    return lambda: torch.autocast(device.type, dtype=dtype), scaler
