"""One load: what the generator does in one run. Closed loops wait for answers; open loops keep to a schedule."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Arrivals = Literal["poisson", "constant"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClosedLoop(_Part):
    """`concurrency` clients, each sending its next request when the answer to the last one is there."""

    kind: Literal["closed"] = "closed"
    concurrency: int = Field(ge=1, le=4096)
    duration_s: float = Field(gt=0, le=86_400)

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.concurrency} at once"


class Phase(_Part):
    """A stretch of an open loop: `rate` arrivals per second, on average."""

    rate: float = Field(gt=0, le=1e6)
    duration_s: float = Field(gt=0, le=86_400)


class OpenLoop(_Part):
    """Requests arrive when the schedule says, whether or not earlier ones are answered."""

    kind: Literal["open"] = "open"
    phases: tuple[Phase, ...] = Field(min_length=1)
    arrivals: Arrivals = "poisson"

    @classmethod
    def steady(cls, rate: float, duration_s: float, arrivals: Arrivals = "poisson") -> "OpenLoop":
        """One rate throughout."""
        return cls(phases=(Phase(rate=rate, duration_s=duration_s),), arrivals=arrivals)

    @property
    def duration_s(self) -> float:
        """Of all phases."""
        return sum(phase.duration_s for phase in self.phases)

    @property
    def rate(self) -> float:
        """Of the first phase: what the warm-up uses."""
        return self.phases[0].rate

    @property
    def label(self) -> str:
        """For tables."""
        return " → ".join(f"{phase.rate:.4g}/s" for phase in self.phases)


Loop = Annotated[ClosedLoop | OpenLoop, Field(discriminator="kind")]


class Load(_Part):
    """A loop of a scenario. `probe`: it only tells the scenario how to go on, and is no row of the result's table."""

    scenario: str
    loop: Loop
    probe: bool = False

    @property
    def label(self) -> str:
        """`sweep, 4 at once`."""
        return f"{self.scenario}, {self.loop.label}"


class WarmUp(_Part):
    """The same load before it is measured, until it is stable.

    The test: mean latency in three successive windows of `min_s` / 3, with at least 5 answers each, differs by no more
    than `tolerance` (largest over smallest, minus 1). After `max_s` the run is measured anyway, and says so.
    """

    min_s: float = Field(default=1.0, ge=0, le=600)
    max_s: float = Field(default=5.0, ge=0, le=3600)
    tolerance: float = Field(default=0.15, gt=0, le=10)
