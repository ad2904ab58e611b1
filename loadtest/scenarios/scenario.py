"""What every scenario is: settings, and the loads that follow from them."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from loadtest.generator.recording import Recording
from loadtest.load import ClosedLoop, Load


class Settings(BaseModel):
    """Base of the scenarios' settings. Field names are the flags of `trident bench` and the keys of its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Past:
    """A load that this lane has had in an earlier round of the same scenario, and what came of it."""

    load: Load
    recording: Recording


Loads = Generator[Load, Recording, None]


class Scenario(Protocol):
    """A scenario asks for one load after another on a lane. It is told what came of each, so it can search."""

    @property
    def kind(self) -> str:
        """Its name."""

    def loads(self, past: Sequence[Past]) -> Loads:
        """The loads of one round on one lane. `past`: the lane's earlier rounds, oldest first."""

    def estimate(self) -> int:
        """About how many loads a round has, for progress bars."""


CAPACITY_CONCURRENCY = 8
CAPACITY_S = 2.0


def capacity(scenario: str, past: Sequence[Past]) -> Generator[Load, Recording, float]:
    """About how many requests per second a lane answers: a short closed loop in its first round, remembered later."""
    for earlier in past:
        if earlier.load.probe and isinstance(earlier.load.loop, ClosedLoop):
            return earlier.recording.requests_per_s
    loop = ClosedLoop(concurrency=CAPACITY_CONCURRENCY, duration_s=CAPACITY_S)
    recording = yield Load(scenario=scenario, loop=loop, probe=True)
    return recording.requests_per_s
