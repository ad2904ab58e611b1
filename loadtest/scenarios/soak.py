"""soak: a steady rate for long. Does latency or memory drift?"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from loadtest.load import Load, OpenLoop
from loadtest.scenarios.scenario import Loads, Past, Settings, capacity


class Soak(Settings):
    """Poisson arrivals at `soak_share` of the lane's capacity for `soak_s`."""

    kind: Literal["soak"] = "soak"
    soak_share: float = Field(default=0.5, gt=0, lt=1)
    soak_s: float = Field(default=60.0, gt=0, le=86_400)

    def loads(self, past: Sequence[Past]) -> Loads:
        """One, after a look at the capacity."""
        most = yield from capacity(self.kind, past)
        if most:
            rate = max(0.1, float(f"{most * self.soak_share:.3g}"))
            yield Load(scenario=self.kind, loop=OpenLoop.steady(rate, self.soak_s))

    def estimate(self) -> int:
        """The capacity and the soak."""
        return 2
