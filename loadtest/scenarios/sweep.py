"""sweep: increasing concurrency. Shows where throughput saturates and queueing starts."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from loadtest.load import ClosedLoop, Load
from loadtest.scenarios.scenario import Loads, PastLoad, ScenarioSettings


class Sweep(ScenarioSettings):
    """A closed loop for each concurrency."""

    kind: Literal["sweep"] = "sweep"
    concurrency: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(2, 4, 8, 16), min_length=1)
    duration_s: float = Field(default=5.0, gt=0, le=3600)

    def loads(self, past: Sequence[PastLoad]) -> Loads:
        """One load per concurrency."""
        for concurrency in self.concurrency:
            yield Load(scenario=self.kind, loop=ClosedLoop(concurrency=concurrency, duration_s=self.duration_s))

    def estimate(self) -> int:
        """One load per concurrency."""
        return len(self.concurrency)
