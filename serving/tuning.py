"""What is best set for each server by itself: copies, threads, batches, delay. `trident tune` searches it."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from serving.clients.endpoint import ServerName

MAX_AUTOMATIC_WORKERS: Final = 4


class Tuning(BaseModel):
    """For one server, or in common for all. What is not set (None) is decided by the next less particular: a server's
    table, the common value, the server's default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | None = Field(
        default=None,
        ge=0,
        le=256,
        description="copies of the model: FastAPI processes, TorchServe workers, Triton instances; 0: one per core, "
        f"{MAX_AUTOMATIC_WORKERS} at most, and one on a GPU",
    )
    threads: int | None = Field(
        default=None,
        ge=0,
        le=256,
        description="threads that each copy computes with; 0: the available cores divided by workers",
    )
    max_batch_size: int | None = Field(default=None, ge=1, le=1024)
    queue_delay_ms: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="how long a request may wait for others to form a batch (TorchServe: 1 at least)",
    )


# The best found on two cores: docs/results/measurements.md, "Tuning".
DEFAULTS: Final[Mapping[ServerName, Tuning]] = {
    "fastapi": Tuning(workers=0, threads=0, max_batch_size=8, queue_delay_ms=0.0),
    "torchserve": Tuning(workers=1, threads=0, max_batch_size=16, queue_delay_ms=0.0),
    "triton": Tuning(workers=1, threads=0, max_batch_size=8, queue_delay_ms=0.0),
}


def resolve(server: ServerName, own: Tuning, common: Tuning, cores: int, device: str) -> dict[str, Any]:
    """Every value of `Tuning` as a number: the server's own, else the common one, else its default."""
    found: dict[str, Any] = {}
    for tuning in (DEFAULTS[server], common, own):
        found |= tuning.model_dump(include=set(Tuning.model_fields), exclude_none=True)
    found["workers"] = found["workers"] or (min(cores, MAX_AUTOMATIC_WORKERS) if device == "cpu" else 1)
    found["threads"] = found["threads"] or max(1, cores // found["workers"])
    return found
