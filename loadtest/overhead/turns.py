"""Turns: every contestant at every concurrency, by every tool, with the ceiling before and after each turn.

The share of the ceiling of a turn is relative to the mean of these two ceilings, so that a change in the machine's speed affects
both.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from bundle.store import Bundle
from loadtest.errors import GeneratorError, LoadtestError
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
_DRAIN_S: Final = 0.25

# Measures a lane at a concurrency.
Tool = Callable[[Lane, int], ToolFigures]
GENERATOR: Final = "generator"
WRK: Final = "wrk"


@dataclass(frozen=True)
class Entrant:
    """A running contestant with its settings for one concurrency. `label`: these settings in tables."""

    name: str
    concurrency: int
    label: str
    server: RunningContestant


@dataclass(frozen=True)
class Turn:
    """One measurement of a contestant.

    Args:
        label: its settings.
        ceiling: images per second, one by one, the mean of before and after.
    """

    contestant: str
    concurrency: int
    tool: str
    figures: ToolFigures
    ceiling: float
    label: str = "-"
    round: int = 0

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
        """The turns with failed requests, and those that the generator distorted, with the reasons."""
        return [
            f"{turn.contestant} at concurrency {turn.concurrency}, by {turn.tool}: {turn.figures.invalid_reason}"
            for turn in self.turns
            if turn.figures.invalid_reason is not None
        ]


def take_turns(
    entrants: Sequence[Entrant],
    tools: Mapping[str, Tool],
    measure_ceiling: Callable[[], CeilingRates],
    rounds: int,
    seed: int,
    on_turn: Callable[[str], None] = lambda _: None,
) -> Turns:
    """Measure all entrants in each round, in a new random order.

    Args:
        on_turn: called before each turn with a description.
    """
    shuffled = random.Random(seed)  # noqa: S311 - an order, not a secret
    done = Turns(ceilings=[measure_ceiling()])
    for round_ in range(rounds):
        for entrant in shuffled.sample(entrants, len(entrants)):
            for name, tool in tools.items():
                on_turn(f"round {round_ + 1} of {rounds}: {entrant.name} at {entrant.concurrency}, by {name}")
                figures = measured(entrant.server, tool, entrant.concurrency)
                done.ceilings.append(measure_ceiling())
                ceiling = (done.ceilings[-2].single + done.ceilings[-1].single) / 2
                done.turns.append(
                    Turn(entrant.name, entrant.concurrency, name, figures, ceiling, entrant.label, round_)
                )
    return done


def measured(server: RunningContestant, tool: Tool, concurrency: int) -> ToolFigures:
    """Figures of a server that runs only meanwhile; invalid and 0 requests/s if requests failed, or none was answered."""
    try:
        with server.resumed():
            figures = tool(server.lane, concurrency)
    except GeneratorError:
        raise
    except LoadtestError as error:
        return ToolFigures(0.0, 0.0, 0.0, invalid_reason=error.message)
    if figures.failed:
        return replace(figures, requests_per_s=0.0, invalid_reason=f"{figures.failed} requests failed")
    return figures if figures.requests_per_s else replace(figures, invalid_reason="no request was answered")


def generator_tool(generator: Generator, bundle: Bundle | None, seconds: float, cores: Sequence[int]) -> Tool:
    """Our load generator, on some cores."""

    def measure(lane: Lane, concurrency: int) -> ToolFigures:
        loop = ClosedLoop(concurrency=concurrency, duration_s=seconds)
        recording = _run(generator, lane, loop, bundle, cores)
        return ToolFigures(
            p50_s=recording.percentile_ms(50) / 1000,
            p99_s=recording.percentile_ms(99) / 1000,
            requests_per_s=recording.requests_per_s,
            invalid_reason=recording.invalid_reason(open_loop=False),
        )

    return measure


def wrk_tool(bundle: Bundle | None, seconds: float, cores: Sequence[int]) -> Tool:
    """wrk, on some cores, with a thread per core."""

    def measure(lane: Lane, concurrency: int) -> ToolFigures:
        figures = run_wrk(lane, bundle, concurrency, seconds, cores, threads=len(cores))
        # wrk stops with requests in flight. A server that was paused with them would take the pause for their latency, and
        # BentoML adapts to that.
        time.sleep(_DRAIN_S)
        return figures

    return measure


def at_constant_rate(
    server: RunningContestant,
    generator: Generator,
    bundle: Bundle | None,
    rate: float,
    seconds: float,
    cores: Sequence[int],
) -> Recording:
    """Latency at a constant rate, measured from the scheduled time.

    Raises:
        LoadtestError: a request failed, or an answer was wrong.
    """
    with server.resumed():
        return _run(generator, server.lane, OpenLoop.steady(rate, seconds, "constant"), bundle, cores)


def _run(generator: Generator, lane: Lane, loop: Loop, bundle: Bundle | None, cores: Sequence[int]) -> Recording:
    recording = generator.run(
        GeneratorSpec(
            lane=lane,
            load=Load(scenario="overhead", loop=loop),
            bundle=bundle.path if bundle is not None else None,
            timeout_s=30,
            warm_up=WARM_UP,
            cores=tuple(cores),
            max_in_flight=_MAX_IN_FLIGHT,
        )
    )
    if recording.failed:
        raise LoadtestError(
            f"{lane.name}, {loop.label}: {recording.failed} requests failed: {next(iter(recording.errors))}"
        )
    return recording
