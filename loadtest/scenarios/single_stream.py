"""single-stream: one request at a time. The latency of a single user."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from loadtest.load import ClosedLoop, Load
from loadtest.scenarios.scenario import Loads, PastLoad, ScenarioSettings


class SingleStream(ScenarioSettings):
    """A closed loop with one client."""

    kind: Literal["single-stream"] = "single-stream"
    duration_s: float = Field(default=5.0, gt=0, le=3600)

    def loads(self, past: Sequence[PastLoad]) -> Loads:
        """One closed loop."""
        yield Load(scenario=self.kind, loop=ClosedLoop(concurrency=1, duration_s=self.duration_s))

    def estimate(self) -> int:
        """One load."""
        return 1
