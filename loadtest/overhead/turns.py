"""Turns on one core: every contestant at every concurrency, by every tool, with the ceiling before and after each turn.

The share of the ceiling of a turn is relative to the mean of these two ceilings, so that a change in the machine's speed affects
both.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bundle.store import Bundle
from loadtest.errors import LoadtestError
from loadtest.generator.client import Generator
from loadtest.generator.recording import Recording
from loadtest.generator.spec import GeneratorSpec
from loadtest.generator.wrk import ToolFigures, run_wrk
from loadtest.lanes.ceiling import CeilingRates
from loadtest.lanes.lane import Lane
from loadtest.load import ClosedLoop, Load, Loop, OpenLoop, WarmUp
from loadtest.overhead.running import RunningContestant

WARM_UP: Final = WarmUp(min_s=0.3, max_s=0.3)
_MAX_IN_FLIGHT: Final = 64

# Measures a lane at a concurrency.
Tool = Callable[[Lane, int], ToolFigures]
GENERATOR: Final = "generator"
WRK: Final = "wrk"


@dataclass(frozen=True)
class Turn:
    """One measurement of a contestant. `ceiling`: images per second, one by one, the mean of before and after."""

    contestant: str
    concurrency: int
    tool: str
    figures: ToolFigures
    ceiling: float

    @property
    def share(self) -> float:
        """The share of the ceiling."""
        return self.figures.requests_per_s / self.ceiling


@dataclass
class Turns:
    """All turns, and all measurements of the ceiling."""

    turns: list[Turn] = field(default_factory=list)
    ceilings: list[CeilingRates] = field(default_factory=list)

    def of(self, contestant: str, concurrency: int, tool: str) -> list[Turn]:
        """The valid turns of a contestant at a concurrency by a tool."""
        wanted = (contestant, concurrency, tool)
        return [
            turn
            for turn in self.turns
            if (turn.contestant, turn.concurrency, turn.tool) == wanted and turn.figures.invalid_reason is None
        ]

    def invalid(self) -> list[str]:
        """The turns that the generator distorted, with the reasons."""
        return [
            f"{turn.contestant} at concurrency {turn.concurrency}: {turn.figures.invalid_reason}"
            for turn in self.turns
            if turn.figures.invalid_reason is not None
        ]


def take_turns(
    servers: Sequence[RunningContestant],
    concurrencies: Sequence[int],
    tools: Mapping[str, Tool],
    measure_ceiling: Callable[[], CeilingRates],
    rounds: int,
    seed: int,
    on_turn: Callable[[int, str], None] = lambda *_: None,
) -> Turns:
    """Measure all servers in each round, in a new random order.

    Args:
        on_turn: called with the round and the contestant's name before each of its turns.

    Raises:
        LoadtestError: a request failed, or an answer was wrong.
    """
    shuffled = random.Random(seed)  # noqa: S311 - an order, not a secret
    done = Turns(ceilings=[measure_ceiling()])
    for round_ in range(rounds):
        for server in shuffled.sample(servers, len(servers)):
            for concurrency in concurrencies:
                for name, tool in tools.items():
                    on_turn(round_, server.lane.name)
                    with server.resumed():
                        figures = tool(server.lane, concurrency)
                    if figures.failed:
                        raise LoadtestError(
                            f"{server.lane.name} at concurrency {concurrency}, by {name}: {figures.failed} requests failed"
                        )
                    done.ceilings.append(measure_ceiling())
                    ceiling = (done.ceilings[-2].single + done.ceilings[-1].single) / 2
                    done.turns.append(Turn(server.lane.name, concurrency, name, figures, ceiling))
    return done


def generator_tool(generator: Generator, bundle: Bundle | None, seconds: float, core: int) -> Tool:
    """Our load generator, on a core."""

    def measure(lane: Lane, concurrency: int) -> ToolFigures:
        loop = ClosedLoop(concurrency=concurrency, duration_s=seconds)
        recording = _run(generator, lane, loop, bundle, core)
        return ToolFigures(
            p50_s=recording.percentile_ms(50) / 1000,
            p99_s=recording.percentile_ms(99) / 1000,
            requests_per_s=recording.requests_per_s,
            invalid_reason=recording.invalid_reason(open_loop=False),
        )

    return measure


def wrk_tool(bundle: Bundle | None, seconds: float, core: int) -> Tool:
    """wrk, on a core."""
    return lambda lane, concurrency: run_wrk(lane, bundle, concurrency, seconds, (core,))


def at_constant_rate(
    server: RunningContestant, generator: Generator, bundle: Bundle | None, rate: float, seconds: float, core: int
) -> Recording:
    """Latency at a constant rate, measured from the scheduled time.

    Raises:
        LoadtestError: a request failed, or an answer was wrong.
    """
    with server.resumed():
        return _run(generator, server.lane, OpenLoop.steady(rate, seconds, "constant"), bundle, core)


def _run(generator: Generator, lane: Lane, loop: Loop, bundle: Bundle | None, core: int) -> Recording:
    recording = generator.run(
        GeneratorSpec(
            lane=lane,
            load=Load(scenario="overhead", loop=loop),
            bundle=bundle.path if bundle is not None else None,
            timeout_s=30,
            warm_up=WARM_UP,
            cores=(core,),
            max_in_flight=_MAX_IN_FLIGHT,
        )
    )
    if recording.failed:
        raise LoadtestError(
            f"{lane.name}, {loop.label}: {recording.failed} requests failed: {next(iter(recording.errors))}"
        )
    return recording
