"""What the load generator is told, as JSON on its standard input."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from loadtest.load import Load, WarmUp
from loadtest.targets import Target


class GeneratorSpec(BaseModel):
    """One run.

    Args:
        bundle: whose golden images are sent; None for a null target, which needs none.
        api_key: shown to the server; never kept in a result.
        cores: the cores that the generator may use; empty: all.
        seed: of the arrivals.
        max_in_flight: connections of an open loop; arrivals beyond it wait, which counts as latency and is reported.
        processes: generator processes; more than one are Locust's workers.
        requests_file: where the row per request is kept (.npz); None: nowhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target
    load: Load
    bundle: Path | None
    timeout_s: float = Field(gt=0)
    api_key: str | None = None
    warm_up: WarmUp = WarmUp()
    cores: tuple[int, ...] = ()
    seed: int = 0
    max_in_flight: int = Field(default=512, ge=1)
    processes: int = Field(default=1, ge=1, le=64)
    requests_file: Path | None = None
