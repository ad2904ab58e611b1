"""The settings of one training run: frozen, validated, and stored in its checkpoints."""

import re
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bundle.manifest import ModelName
from training.errors import DataError

DataName = Literal["digits", "cifar10", "folder"]
OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "step", "cosine", "onecycle"]
TrackerName = Literal["tensorboard", "mlflow"]


class TrainSettings(BaseModel):
    """Settings of one run.

    `trident train` has one flag per field. The flag's name, type, help text and default come from here, so a new field
    needs no other change. `json_schema_extra` holds what only the flag needs (see trident/flags.py): `group` starts a
    new group in the help, `default` replaces the default shown, `off` names the flag that turns a boolean off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataName = Field(
        default="digits",
        description="Data set, or the path of a folder with your own images. digits works offline.",
        json_schema_extra={"group": "Data"},
    )
    data_dir: Path | None = Field(
        default=None,
        description="cifar10: folder of the archive. folder: DIR/LABEL/*.jpg or DIR/{train,val,test}/LABEL/*.jpg.",
        json_schema_extra={"default": "data"},
    )
    image_size: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description="Height and width of the model's input, in pixels.",
        json_schema_extra={"default": "32; folder: 224"},
    )
    loader_workers: int = Field(
        default=0, ge=0, description="Processes that decode and augment images; 0 uses the training process."
    )
    prefetch: int = Field(default=2, ge=1, description="Batches that each loader worker prepares in advance.")

    model: str = Field(
        default="simple_cnn",
        description="mlp, simple_cnn, resnet, resnet9, efficientnet_lite0, or the name of a torchvision classifier.",
        json_schema_extra={"group": "Model"},
    )
    pretrained: bool = Field(
        default=False, description="Start from ImageNet weights.", json_schema_extra={"off": "from-scratch"}
    )
    freeze_epochs: int = Field(
        default=0, ge=0, description="With --pretrained: train only the head for this many epochs first."
    )
    dropout: float = Field(default=0.25, ge=0, lt=1, description="Dropout probability of Trident's own models.")
    name: ModelName = Field(
        default="digits", description="Name of the bundle.", json_schema_extra={"default": "the data set's name"}
    )

    epochs: int = Field(
        default=20,
        ge=1,
        description="Maximum number of passes over the training images.",
        json_schema_extra={"group": "Optimisation"},
    )
    batch_size: int = Field(
        default=64, ge=1, description="Images per optimiser step, over all processes and accumulated parts."
    )
    optimizer: OptimizerName = Field(default="adamw", description="Optimiser; sgd uses Nesterov momentum.")
    learning_rate: float = Field(default=2e-3, gt=0, description="Peak learning rate of the schedule.")
    backbone_rate: float = Field(
        default=0.1, gt=0, le=1, description="With --pretrained: factor on the backbone's learning rate."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(default=1e-2, ge=0, description="Weight decay; biases and norms are exempt.")
    schedule: ScheduleName = Field(default="cosine", description="Shape of the learning rate over the run.")
    warmup_epochs: float = Field(default=1.0, ge=0, description="Length of the linear warm-up, or of onecycle's rise.")
    step_epochs: int = Field(default=10, ge=1, description="With --schedule step: epochs between divisions by 10.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
    clip_norm: float | None = Field(default=None, gt=0, description="Maximum norm of the gradient.")
    accumulate: int = Field(default=1, ge=1, description="Parts in which a step is computed, to save memory.")
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="Decay of the moving average of the weights; 0 disables it."
    )
    patience: int = Field(default=10, ge=1, description="Stop after this many epochs without a lower validation loss.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Random seed; equal seeds give equal weights.")

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Device to train on; auto uses CUDA where available.",
        json_schema_extra={"group": "Device"},
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Precision of the computation; auto is fp32 on CPUs and mixed on CUDA."
    )
    channels_last: bool = Field(
        default=True, description="Memory format of images and weights.", json_schema_extra={"off": "channels-first"}
    )
    compile: bool = Field(
        default=False, description="Compile the model with torch.compile.", json_schema_extra={"off": "eager"}
    )

    checkpoint_steps: int = Field(
        default=0,
        ge=0,
        description="Steps between checkpoints; 0 saves one after each epoch only.",
        json_schema_extra={"group": "Output"},
    )
    keep_last: int = Field(default=2, ge=1, description="Number of checkpoints to keep for --resume.")
    track: tuple[TrackerName, ...] = Field(
        default=(),
        description="Trackers, separated by commas. JSON lines are always written.",
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.freeze_epochs and not self.pretrained:
            raise ValueError("--freeze-epochs needs --pretrained: a backbone with random weights must be trained")
        if self.accumulate > self.batch_size:
            raise ValueError("--accumulate must not exceed --batch-size: every part needs at least one image")
        return self


# Defaults per data set. CIFAR-10's follow David Page's "How to train your ResNet"; a folder of images starts from
# ImageNet weights.
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
        "warmup_epochs": 2.0,
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


def resolve_settings(given: dict[str, Any]) -> TrainSettings:
    """Merge `given` with the data set's recipe and the defaults; `given` takes precedence.

    `data` may be the path of a folder. If `given` names another model than the recipe's, training starts from random
    weights unless `pretrained` is given too.

    Raises:
        DataError: the folder does not exist.
        pydantic.ValidationError: a value is invalid.
    """
    given = dict(given)
    data = given.get("data", "digits")
    if data not in (*RECIPES, "digits", "folder"):
        if not Path(data).is_dir():
            raise DataError(f"--data: {data} is neither digits, cifar10 nor an existing folder")
        given |= {"data": "folder", "data_dir": Path(data)}
    recipe = _recipe(given)
    data, folder = given.get("data", "digits"), given.get("data_dir")
    name = Path(folder).resolve().name if data == "folder" and folder else str(data)
    return TrainSettings(**{"name": bundle_name(name)} | recipe | given)


def _recipe(given: dict[str, Any]) -> dict[str, Any]:
    """Return the data set's recipe without the entries that do not fit the given model."""
    recipe = dict(RECIPES.get(given.get("data", "digits"), {}))
    other_model = given.get("model", recipe.get("model")) != recipe.get("model")
    if other_model and not given.get("pretrained", False):
        recipe.pop("pretrained", None)
        recipe.pop("freeze_epochs", None)
    if given.get("pretrained") is False:
        recipe.pop("freeze_epochs", None)
    return recipe


def bundle_name(text: str) -> str:
    """Turn `text` into a valid bundle name: lower-case letters, digits, `-` and `_`."""
    return re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_-")[:64] or "model"
