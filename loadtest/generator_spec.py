"""What the load generator is told, as JSON on its standard input."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from loadtest.scenarios.load import Load
from loadtest.targets import Target


class GeneratorSpec(BaseModel):
    """One run. `cores`: the cores that it may use; empty: all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target
    load: Load
    bundle: Path
    timeout_s: float
    cores: tuple[int, ...] = ()
