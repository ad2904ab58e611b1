"""What one training run was asked to do. Frozen, validated, and stored in its checkpoints."""

import re
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bundle.manifest import ModelName

DataName = Literal["digits", "cifar10", "folder"]
OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "step", "cosine", "onecycle"]
TrackerName = Literal["tensorboard", "mlflow"]


class TrainSettings(BaseModel):
    """One run. Field names are the flags of `trident train`; `batch_size` counts the images of one optimiser step, over
    all processes and accumulated parts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataName = "digits"
    data_dir: Path | None = None
    model: str = "simple_cnn"
    name: ModelName = "digits"
    image_size: int | None = Field(default=None, ge=8, le=1024)

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=64, ge=1)
    optimizer: OptimizerName = "adamw"
    learning_rate: float = Field(default=2e-3, gt=0, description="the highest of the schedule")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's, by Nesterov")
    weight_decay: float = Field(default=1e-2, ge=0, description="not of biases and norms")
    schedule: ScheduleName = "cosine"
    warmup_epochs: float = Field(default=1.0, ge=0, description="of a linear warm-up; OneCycle's rise")
    step_epochs: int = Field(default=10, ge=1, description="schedule step: epochs between two falls by a factor of 10")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    dropout: float = Field(default=0.25, ge=0, lt=1, description="of our own models")
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    accumulate: int = Field(default=1, ge=1, description="parts into which a step's images are divided")
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="of the weights' moving average; 0: none")
    pretrained: bool = False
    freeze_epochs: int = Field(default=0, ge=0, description="epochs that train the head alone")
    backbone_rate: float = Field(default=0.1, gt=0, le=1, description="the backbone's share of the learning rate")
    patience: int = Field(default=10, ge=1, description="epochs without a better validation loss before the run stops")
    seed: int = Field(default=0, ge=0, lt=2**31)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    loader_workers: int = Field(
        default=0, ge=0, description="processes that decode and augment; 0: the training process itself"
    )
    prefetch: int = Field(default=2, ge=1, description="batches that each of them holds ready")

    checkpoint_steps: int = Field(default=0, ge=0, description="steps between checkpoints; 0: one per epoch")
    keep_last: int = Field(default=2, ge=1, description="checkpoints to resume from that are kept")
    track: tuple[TrackerName, ...] = ()

    @model_validator(mode="after")
    def _freezing_needs_weights(self) -> Self:
        if self.freeze_epochs and not self.pretrained:
            raise ValueError("freeze_epochs goes with pretrained: a backbone of random weights must learn")
        if self.accumulate > self.batch_size:
            raise ValueError("accumulate is more than batch_size: a step has no image for some of its parts")
        return self


# What a data set is trained with where nothing else is asked for. CIFAR-10's is in the spirit of David Page's "How to
# train your ResNet"; a folder of images starts from ImageNet's weights.
RECIPES: Final[dict[DataName, dict[str, Any]]] = {
    "digits": {},
    "cifar10": {
        "model": "resnet9",
        "epochs": 10,
        "batch_size": 512,
        "optimizer": "sgd",
        "learning_rate": 0.4,
        "weight_decay": 1e-3,
        "schedule": "onecycle",
        "warmup_epochs": 2,
        "label_smoothing": 0.1,
        "ema_decay": 0.99,
    },
    "folder": {
        "model": "efficientnet_lite0",
        "pretrained": True,
        "epochs": 8,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "freeze_epochs": 4,
        "label_smoothing": 0.1,
    },
}


def chosen_settings(given: dict[str, Any]) -> TrainSettings:
    """`given` over the data set's recipe over the defaults. `data` may be a folder's path. Another model than the
    recipe's starts from random weights unless it is asked for otherwise.

    Raises:
        pydantic.ValidationError: a value is out of range.
    """
    given = dict(given)
    data = str(given.get("data", "digits"))
    if data not in RECIPES and Path(data).is_dir():
        given |= {"data": "folder", "data_dir": Path(data)}
    recipe = dict(RECIPES.get(given.get("data", "digits"), {}))
    if given.get("model", recipe.get("model")) != recipe.get("model") and not given.get("pretrained", False):
        recipe = {key: value for key, value in recipe.items() if key not in ("pretrained", "freeze_epochs")}
    if given.get("pretrained") is False:
        recipe.pop("freeze_epochs", None)
    folder = given.get("data_dir")
    named_after = (
        Path(folder).resolve().name if given.get("data") == "folder" and folder else given.get("data", "digits")
    )
    return TrainSettings(**{"name": model_name(str(named_after))} | recipe | given)


def model_name(text: str) -> str:
    """`text` as a bundle may be called: lower case, digits, `-` and `_`."""
    return re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_-")[:64] or "model"
