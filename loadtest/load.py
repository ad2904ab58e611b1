"""One load: what the generator does in one run.

Closed loop: each client waits for its answer before it sends the next request. Open loop: requests are sent on a
schedule.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Arrivals = Literal["poisson", "constant"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClosedLoop(_Part):
    """`concurrency` clients; each sends its next request when it has the answer to the previous one."""

    kind: Literal["closed"] = "closed"
    concurrency: int = Field(ge=1, le=4096)
    duration_s: float = Field(gt=0, le=86_400)

    @property
    def label(self) -> str:
        """The name in tables: `concurrency 4`."""
        return f"concurrency {self.concurrency}"


class Phase(_Part):
    """A part of an open loop: `rate` arrivals per second, on average."""

    rate: float = Field(gt=0, le=1e6)
    duration_s: float = Field(gt=0, le=86_400)


class OpenLoop(_Part):
    """Requests are sent at their scheduled times, whether or not earlier ones have been answered."""

    kind: Literal["open"] = "open"
    phases: tuple[Phase, ...] = Field(min_length=1)
    arrivals: Arrivals = "poisson"

    @classmethod
    def steady(cls, rate: float, duration_s: float, arrivals: Arrivals = "poisson") -> "OpenLoop":
        """One constant rate."""
        return cls(phases=(Phase(rate=rate, duration_s=duration_s),), arrivals=arrivals)

    @property
    def duration_s(self) -> float:
        """The length of all phases."""
        return sum(phase.duration_s for phase in self.phases)

    @property
    def rate(self) -> float:
        """The rate of the first phase, which is also the warm-up's."""
        return self.phases[0].rate

    @property
    def label(self) -> str:
        """The name in tables: `100/s → 300/s → 100/s`."""
        return " → ".join(f"{phase.rate:.4g}/s" for phase in self.phases)


Loop = Annotated[ClosedLoop | OpenLoop, Field(discriminator="kind")]


class Load(_Part):
    """A loop of a scenario.

    Args:
        probe: the load only guides the scenario's search; the result's table has no row for it.
    """

    scenario: str
    loop: Loop
    probe: bool = False

    @property
    def label(self) -> str:
        """The name in tables: `sweep, concurrency 4`."""
        return f"{self.scenario}, {self.loop.label}"


class WarmUp(_Part):
    """The same load before the measurement, until latency is stable.

    Stable: the mean latencies of three successive windows of `min_s` / 3, with at least 5 answers each, differ by at
    most `tolerance` (largest / smallest - 1). After `max_s` the measurement starts anyway, and the run has a remark.
    """

    min_s: float = Field(default=1.0, ge=0, le=600)
    max_s: float = Field(default=5.0, ge=0, le=3600)
    tolerance: float = Field(default=0.15, gt=0, le=10)
