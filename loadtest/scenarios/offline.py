"""offline: all images are available from the start. The highest throughput, whatever the latency."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from loadtest.load import ClosedLoop, Load
from loadtest.scenarios.scenario import Loads, PastLoad, ScenarioSettings


class Offline(ScenarioSettings):
    """A closed loop with enough requests in flight that the server can always fill its batches."""

    kind: Literal["offline"] = "offline"
    in_flight: int = Field(default=64, ge=1, le=4096, description="concurrent requests")
    duration_s: float = Field(default=5.0, gt=0, le=3600)

    def loads(self, past: Sequence[PastLoad]) -> Loads:
        """One closed loop."""
        yield Load(scenario=self.kind, loop=ClosedLoop(concurrency=self.in_flight, duration_s=self.duration_s))

    def estimate(self) -> int:
        """One load."""
        return 1
