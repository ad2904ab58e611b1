"""Checkpoints: weights with everything that is needed to rebuild and to judge the model. No pickled objects, only
tensors and plain values.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from serving.manifest import ImageInput
from training.errors import CheckpointError
from training.models import Classifier, build_network
from training.settings import TrainSettings

CHECKPOINT_SCHEMA: Final = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. `weights` is the state of a `models.Classifier`."""

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
        """The model with its weights, on the CPU, in evaluation mode."""
        network = build_network(self.settings.model, len(self.labels), self.input.height)
        classifier = Classifier(network, self.mean, self.std)
        classifier.load_state_dict(self.weights)
        return classifier.eval()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write `path`, whole or not at all."""
    content: dict[str, Any] = asdict(checkpoint) | {
        "schema": CHECKPOINT_SCHEMA,
        "settings": checkpoint.settings.model_dump(mode="json"),
        "input": checkpoint.input.model_dump(mode="json"),
        "weights": checkpoint.weights,
    }
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


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or not one of ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        schema = content.pop("schema")
        if schema != CHECKPOINT_SCHEMA:
            raise CheckpointError(f"{path} has checkpoint schema {schema}; this Trident reads {CHECKPOINT_SCHEMA}")
        content["settings"] = TrainSettings.model_validate(content["settings"])
        content["input"] = ImageInput.model_validate(content["input"])
        return Checkpoint(**content)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there; `trident train` makes it") from error
    except Exception as error:  # torch.load raises nearly anything on a file that is not its own
        raise CheckpointError(f"{path} is not a checkpoint of Trident: {type(error).__name__}: {error}") from error
