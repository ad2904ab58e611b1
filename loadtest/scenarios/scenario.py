"""The interface of a scenario: settings, and the loads that follow from them."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from loadtest.generator.recording import Recording
from loadtest.load import ClosedLoop, Load


class ScenarioSettings(BaseModel):
    """The base class of the scenarios' settings. Field names are flags of `trident bench` and keys of its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class PastLoad:
    """A load that the lane had in an earlier round of the same scenario, with its recording."""

    load: Load
    recording: Recording


Loads = Generator[Load, Recording, None]


class Scenario(Protocol):
    """Yields one load after another for a lane, and receives each recording, so that it can search."""

    @property
    def kind(self) -> str:
        """The name of the scenario."""

    def loads(self, past: Sequence[PastLoad]) -> Loads:
        """The loads of one round on one lane. `past`: the lane's earlier rounds, oldest first."""

    def estimate(self) -> int:
        """The approximate number of loads per round, for progress bars."""


CAPACITY_CONCURRENCY = 8
CAPACITY_S = 2.0


def capacity(scenario: str, past: Sequence[PastLoad]) -> Generator[Load, Recording, float]:
    """The approximate throughput of a lane (requests/s): a short closed loop in its first round, reused in later rounds."""
    for earlier in past:
        if earlier.load.probe and isinstance(earlier.load.loop, ClosedLoop):
            return earlier.recording.requests_per_s
    loop = ClosedLoop(concurrency=CAPACITY_CONCURRENCY, duration_s=CAPACITY_S)
    recording = yield Load(scenario=scenario, loop=loop, probe=True)
    return recording.requests_per_s
