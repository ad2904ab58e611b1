"""server: requests arrive as those of many independent users do, a Poisson process of a given rate."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from loadtest.load import Arrivals, Load, OpenLoop
from loadtest.scenarios.scenario import Loads, Past, Settings, capacity

Rate = Annotated[float, Field(gt=0, le=1e6)]


class Server(Settings):
    """Open loop at each of `rates`; without any, at `shares` of what the lane answers in a short closed loop."""

    kind: Literal["server"] = "server"
    rates: tuple[Rate, ...] = Field(default=(), description="requests per second")
    shares: tuple[Rate, ...] = (0.25, 0.5, 0.7, 0.85)
    arrivals: Arrivals = "poisson"
    duration_s: float = Field(default=5.0, gt=0, le=3600)

    def loads(self, past: Sequence[Past]) -> Loads:
        """One per rate; the same rates in every round."""
        rates: list[float] = list(self.rates)
        if not rates:
            most = yield from capacity(self.kind, past)
            rates = [max(0.1, float(f"{most * share:.3g}")) for share in self.shares] if most else []
        for rate in rates:
            yield Load(scenario=self.kind, loop=OpenLoop.steady(rate, self.duration_s, self.arrivals))

    def estimate(self) -> int:
        """The rates."""
        return len(self.rates or self.shares)
