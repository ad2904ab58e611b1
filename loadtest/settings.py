"""What a benchmark is asked to do. Frozen, and stored in its result."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ScenarioName = Literal["single-stream", "sweep"]


class BenchSettings(BaseModel):
    """One benchmark. Field names are the flags of `trident bench`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenarios: tuple[ScenarioName, ...] = ("single-stream", "sweep")
    concurrency: tuple[int, ...] = Field(default=(2, 4, 8, 16), description="requests under way at once, in the sweep")
    duration_s: float = Field(default=5.0, gt=0, le=3600, description="measured time of one run")
    warmup_s: float = Field(default=1.0, ge=0, le=600, description="time under the same load before it is measured")
    rounds: int = Field(default=2, ge=1, le=100, description="how often each run is repeated, in a new random order")
    seed: int = Field(default=0, ge=0)
    timeout_s: float = Field(default=30.0, gt=0, description="a request that takes longer counts as an error")
