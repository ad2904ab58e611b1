"""What one training run was asked to do. Frozen, validated, and stored in its checkpoints."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.manifest import ModelName

DataName = Literal["digits", "cifar10", "folder"]


class TrainSettings(BaseModel):
    """One run. Field names are the flags of `trident train`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataName = "digits"
    data_dir: Path | None = None
    model: str = "simple_cnn"
    name: ModelName = "digits"
    image_size: int | None = Field(default=None, ge=8, le=1024)

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup_epochs: float = Field(default=1.0, ge=0)
    patience: int = Field(default=10, ge=1, description="epochs without a better validation loss before the run stops")
    seed: int = Field(default=0, ge=0, lt=2**31)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    loader_workers: int = Field(
        default=0, ge=0, description="processes that decode and augment; 0: the training process itself"
    )
