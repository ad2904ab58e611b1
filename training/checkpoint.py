"""Checkpoint files.

`Checkpoint` holds the weights and all metadata needed to rebuild and evaluate the model. `RunState` holds the complete
state of a run, from which it can be resumed. The files contain tensors and plain values only, no pickled objects.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bundle.manifest import ImageInput
from training.errors import CheckpointError
from training.models import Classifier, build_network
from training.settings import TrainSettings

CHECKPOINT_SCHEMA: Final = 2


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint; `weights` is the state dict of a `models.Classifier`."""

    settings: TrainSettings
    labels: tuple[str, ...]
    input: ImageInput
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    epoch: int
    val_accuracy: float
    test_accuracy: float | None
    weights: dict[str, Tensor]

    def build(self) -> Classifier:
        """Return the model with its weights, on the CPU and in evaluation mode."""
        network = build_network(self.settings.model, len(self.labels), self.input.height, self.settings.dropout)
        classifier = Classifier(network, self.mean, self.std)
        classifier.load_state_dict(self.weights)
        return classifier.eval()


@dataclass(frozen=True)
class RunState:
    """A run after `step` optimiser steps. Holds no random state: random numbers depend only on seed, epoch and step."""

    settings: TrainSettings
    fingerprint: str
    step: int
    losses: Tensor  # float64 [steps done in the current epoch]
    results: list[dict[str, Any]]  # one per finished epoch
    parts: dict[str, Any]  # state dicts: model, optimizer, schedule, scaler, and ema if used


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write `path` atomically."""
    content: dict[str, Any] = vars(checkpoint) | {
        "schema": CHECKPOINT_SCHEMA,
        "settings": checkpoint.settings.model_dump(mode="json"),
        "input": checkpoint.input.model_dump(mode="json"),
    }
    _write(content, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint onto the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or was not written by Trident.
    """
    content = _read(path)
    try:
        content["settings"] = TrainSettings.model_validate(content["settings"])
        content["input"] = ImageInput.model_validate(content["input"])
        return Checkpoint(**content)
    except Exception as error:
        raise _unreadable(path, error) from error


def save_state(state: RunState, folder: Path, keep_last: int) -> None:
    """Write `folder`/step-<step>.pt atomically, and delete all but the newest `keep_last` states."""
    content = {"schema": CHECKPOINT_SCHEMA, "settings": state.settings.model_dump(mode="json")}
    content |= {name: getattr(state, name) for name in ("fingerprint", "step", "losses", "results", "parts")}
    _write(content, folder / f"step-{state.step:08d}.pt")
    for old in state_files(folder)[:-keep_last]:
        old.unlink()


def load_state(path: Path) -> RunState:
    """Load the state of a run onto the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or was not written by Trident.
    """
    content = _read(path)
    try:
        content["settings"] = TrainSettings.model_validate(content["settings"])
        return RunState(**content)
    except Exception as error:
        raise _unreadable(path, error) from error


def state_files(folder: Path) -> list[Path]:
    """Return the state files in a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def _write(content: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        schema = content.pop("schema")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; `trident train` writes checkpoints") from error
    except Exception as error:  # torch.load raises many types of errors on foreign files
        raise _unreadable(path, error) from error
    if schema != CHECKPOINT_SCHEMA:
        raise CheckpointError(
            f"{path} has checkpoint schema {schema}; this version of Trident reads {CHECKPOINT_SCHEMA}: train the model again"
        )
    return content


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is not a Trident checkpoint: {type(error).__name__}: {error}")
