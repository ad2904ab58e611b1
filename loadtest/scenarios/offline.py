"""offline: all images are there from the beginning. Most images per second, whatever the latency."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from loadtest.load import ClosedLoop, Load
from loadtest.scenarios.scenario import Loads, Past, Settings


class Offline(Settings):
    """Closed loop with so many requests under way that the server always has full batches to take."""

    kind: Literal["offline"] = "offline"
    in_flight: int = Field(default=64, ge=1, le=4096, description="requests under way at once")
    duration_s: float = Field(default=5.0, gt=0, le=3600)

    def loads(self, past: Sequence[Past]) -> Loads:
        """One."""
        yield Load(scenario=self.kind, loop=ClosedLoop(concurrency=self.in_flight, duration_s=self.duration_s))

    def estimate(self) -> int:
        """One."""
        return 1
