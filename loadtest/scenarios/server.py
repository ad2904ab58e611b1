"""server: Poisson arrivals at a given rate, as of many independent users."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from loadtest.load import Arrivals, Load, OpenLoop
from loadtest.scenarios.scenario import Loads, PastLoad, ScenarioSettings, capacity

Rate = Annotated[float, Field(gt=0, le=1e6)]


class ServerScenario(ScenarioSettings):
    """An open loop at each of `rates`; without rates, at `shares` of the throughput in a short closed loop."""

    kind: Literal["server"] = "server"
    rates: tuple[Rate, ...] = Field(default=(), description="requests per second")
    shares: tuple[Rate, ...] = (0.25, 0.5, 0.7, 0.85)
    arrivals: Arrivals = "poisson"
    duration_s: float = Field(default=5.0, gt=0, le=3600)

    def loads(self, past: Sequence[PastLoad]) -> Loads:
        """One open loop per rate; the same rates in every round."""
        rates: list[float] = list(self.rates)
        if not rates:
            capacity_per_s = yield from capacity(self.kind, past)
            rates = (
                [max(0.1, float(f"{capacity_per_s * share:.3g}")) for share in self.shares] if capacity_per_s else []
            )
        for rate in rates:
            yield Load(scenario=self.kind, loop=OpenLoop.steady(rate, self.duration_s, self.arrivals))

    def estimate(self) -> int:
        """One load per rate."""
        return len(self.rates or self.shares)
