"""soak: a steady rate for a long time. Shows whether latency or memory drifts."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from loadtest.load import Load, OpenLoop
from loadtest.scenarios.scenario import Loads, PastLoad, ScenarioSettings, capacity


class Soak(ScenarioSettings):
    """Poisson arrivals at `soak_share` of the lane's capacity for `soak_s`."""

    kind: Literal["soak"] = "soak"
    soak_share: float = Field(default=0.5, gt=0, lt=1)
    soak_s: float = Field(default=60.0, gt=0, le=86_400)

    def loads(self, past: Sequence[PastLoad]) -> Loads:
        """The capacity probe, then one open loop."""
        capacity_per_s = yield from capacity(self.kind, past)
        if capacity_per_s:
            rate = max(0.1, float(f"{capacity_per_s * self.soak_share:.3g}"))
            yield Load(scenario=self.kind, loop=OpenLoop.steady(rate, self.soak_s))

    def estimate(self) -> int:
        """The capacity probe and the soak."""
        return 2
