"""The settings of one run of the load generator, as JSON on its standard input."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loadtest.lanes.lane import Lane
from loadtest.load import Load, WarmUp


class BadRequests(BaseModel):
    """The shares of bad requests in a load (HTTP only); all other requests are golden.

    Args:
        damaged: images that are cut off; the server must answer 400, 415 or 422.
        oversized: bodies that declare a length of `oversized_bytes`; the server must answer 413.
        aborted: the client closes the connection up to `abort_within_s` after the request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    damaged: float = Field(default=0.0, ge=0, le=1)
    oversized: float = Field(default=0.0, ge=0, le=1)
    aborted: float = Field(default=0.0, ge=0, le=1)
    oversized_bytes: int = Field(default=10 * 2**20 + 1, ge=1)
    abort_within_s: float = Field(default=0.002, ge=0)

    @property
    def share(self) -> float:
        """The share of all bad requests."""
        return self.damaged + self.oversized + self.aborted


class GeneratorSpec(BaseModel):
    """One run.

    Args:
        bundle: its golden images are sent; None for the null target.
        api_key: sent to the server; never stored in a result.
        cores: the generator's cores; empty: all.
        seed: of the arrivals and of the mix of requests.
        max_in_flight: connections of an open loop; arrivals beyond it wait, which counts as latency and is reported.
        processes: generator processes; two or more are Locust's workers.
        requests_file: where the row per request is stored (.npz); None: not stored.
        bad_requests: shares of requests that the server must refuse.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lane: Lane
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
    bad_requests: BadRequests = BadRequests()

    @model_validator(mode="after")
    def _bad_requests_fit(self) -> Self:
        if self.bad_requests.share > 1:
            raise ValueError("the shares of bad requests add up to more than 1")
        if self.bad_requests.share and self.lane.protocol != "http":
            raise ValueError("bad requests can be sent over HTTP only")
        return self
