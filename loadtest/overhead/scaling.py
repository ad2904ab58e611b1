"""Requests per second over cores: Trident and mosec with as many workers as cores, measured by wrk.

The server has W cores. wrk has the others. If there are none it shares the server's, and its CPU time is taken out: requests/s
times W / (W - cores that wrk used). This assumes that the server would use that time as well as it used the rest.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final
from urllib.parse import urlsplit

from rich.console import Console

from bundle.store import Bundle
from loadtest.errors import LoadtestError
from loadtest.generator.wrk import INSTALL_WRK, ToolFigures, wrk_is_installed
from loadtest.lanes.lane import Lane
from loadtest.overhead.choosing import best_settings
from loadtest.overhead.contestants import BATCH_SIZES, MOSEC, TRIDENT, Contestant, contestants
from loadtest.overhead.running import running
from loadtest.overhead.steps import Steps, choosing_s, show_steps
from loadtest.overhead.table import Block, Table
from loadtest.overhead.turns import Entrant, measured, wrk_tool
from loadtest.overhead.use import Use, connections_of_processes, cores_of_processes, watching

_SETTLE_S: Final = 2.0
_CHOOSING_S: Final = 1.0
_OVERHEAD_S: Final = 0.4


@dataclass(frozen=True)
class ScalingSettings:
    """What to measure. `workers`: numbers of workers, and of cores for the server."""

    peers: Path | None = None
    workers: Sequence[int] = (1, 2)
    connections: Sequence[int] = (4, 16, 64)
    batch_sizes: Sequence[int] = BATCH_SIZES
    first_delay_only: bool = False
    rounds: int = 4
    seconds: float = 2.0
    seed: int = 0


@dataclass
class ScalingTurns:
    """The valid turns of an entrant. `shared`: wrk shared the server's cores."""

    entrant: Entrant
    workers: int
    shared: bool
    figures: list[ToolFigures] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)

    @property
    def without_wrk(self) -> float:
        """Requests per second without wrk's cost, if they shared cores; median."""
        pairs = zip(self.figures, self.uses, strict=True)
        return median(
            without_load(figures.requests_per_s, self.workers, use.load_cores if self.shared else 0.0)
            for figures, use in pairs
        )


def without_load(requests_per_s: float, cores: int, load_cores: float) -> float:
    """Requests per second on all `cores`, of a server that shared them with a load that used `load_cores` of them."""
    return requests_per_s * cores / max(cores - load_cores, 1e-9)


def measure_scaling(settings: ScalingSettings, bundle: Bundle, console: Console) -> list[Block]:
    """Measure each number of workers on as many cores.

    Raises:
        LoadtestError: wrk is not installed, there are too few cores, or a server did not start.
    """
    if not wrk_is_installed():
        raise LoadtestError(INSTALL_WRK)
    cores = sorted(os.sched_getaffinity(0))
    if max(settings.workers) > len(cores):
        raise LoadtestError(f"--workers: this process may use {len(cores)} cores only")
    turns: list[ScalingTurns] = []
    with Steps(console, _estimate_s(settings, bundle)) as steps:
        for workers in settings.workers:
            turns += _measure(settings, bundle, workers, cores, steps)
    return scaling_tables(settings, turns, len(cores))


def _measure(
    settings: ScalingSettings, bundle: Bundle, workers: int, cores: list[int], steps: Steps
) -> list[ScalingTurns]:
    server_cores, load_cores = cores[:workers], cores[workers:] or cores
    with ExitStack() as stack:
        turns = []
        for variants in _contestants(settings, bundle, workers).values():
            chosen = best_settings(
                variants,
                settings.connections,
                lambda one: running(one, bundle, server_cores, settle_s=_SETTLE_S),
                wrk_tool(bundle, _CHOOSING_S, load_cores),
                1,
                settings.seed,
                show_steps(steps, _CHOOSING_S + _OVERHEAD_S, _SETTLE_S),
            )
            entrants = stack.enter_context(chosen)
            turns += [ScalingTurns(entrant, workers, shared=not cores[workers:]) for entrant in entrants]
        for round_ in range(settings.rounds):
            for one in turns:
                text = (
                    f"{workers} workers, round {round_ + 1}: {one.entrant.name}, {one.entrant.concurrency} connections"
                )
                steps.begin(text, settings.seconds + _OVERHEAD_S)
                _take_turn(one, bundle, settings.seconds, load_cores)
    return turns


def _contestants(settings: ScalingSettings, bundle: Bundle, workers: int) -> dict[str, list[Contestant]]:
    names = [TRIDENT, MOSEC] if settings.peers is not None else [TRIDENT]
    return contestants(bundle, settings.peers, names, settings.batch_sizes, workers, settings.first_delay_only)


def _take_turn(one: ScalingTurns, bundle: Bundle, seconds: float, load_cores: Sequence[int]) -> None:
    uses = []

    def tool(lane: Lane, connections: int) -> ToolFigures:
        with watching(one.entrant.server.process.pid, urlsplit(lane.url).port or 80, seconds) as use:
            figures = wrk_tool(bundle, seconds, load_cores)(lane, connections)
        uses.append(use)
        return figures

    figures = measured(one.entrant.server, tool, one.entrant.concurrency)
    if figures.invalid_reason is None:
        one.figures.append(figures)
        one.uses += uses


def scaling_tables(settings: ScalingSettings, turns: Sequence[ScalingTurns], cores: int) -> list[Block]:
    """One table per number of connections."""
    blocks: list[Block] = [
        f"The server has as many cores as workers, wrk has the others of {cores}. Where wrk shares the server's cores, its "
        "measured CPU time is taken out: `without wrk` is requests/s times W / (W - cores of wrk). This assumes that the "
        "server would use that time as well as it used the rest.",
        "`cores by process`: CPU time of each process of the server per second, which shows how evenly requests reach the "
        "workers. `connections by process`: how many connections each process held at half time, one group per round; "
        "mosec's one front process accepts all of them.",
        f"Settings: those with the most requests/s in a turn of {_CHOOSING_S:g} s that is not part of the figures below: "
        f"medians of {settings.rounds} x {settings.seconds:g} s.",
    ]
    for connections in settings.connections:
        some = [one for one in turns if one.entrant.concurrency == connections and one.figures]
        blocks.append(_table(connections, sorted(some, key=lambda one: (one.entrant.name != TRIDENT, one.workers))))
    return blocks


def _table(connections: int, turns: Sequence[ScalingTurns]) -> Table:
    first = {one.entrant.name: one for one in reversed(turns)}
    columns = ("server", "settings", "workers", "p50 ms", "p99 ms", "requests/s", "cores of wrk", "without wrk")
    rows = [
        (
            one.entrant.name,
            one.entrant.label,
            str(one.workers),
            f"{median(figures.p50_s for figures in one.figures) * 1000:.2f}",
            f"{median(figures.p99_s for figures in one.figures) * 1000:.2f}",
            f"{median(figures.requests_per_s for figures in one.figures):.0f}",
            f"{median(use.load_cores for use in one.uses):.2f}",
            f"{one.without_wrk:.0f}",
            f"{one.without_wrk / first[one.entrant.name].without_wrk:.2f}",
            cores_of_processes(one.uses),
            connections_of_processes(one.uses),
        )
        for one in turns
    ]
    more = ("times the first", "cores by process", "connections by process")
    return Table(f"{connections} connections", (*columns, *more), tuple(rows))


def _estimate_s(settings: ScalingSettings, bundle: Bundle) -> float:
    total, count = 0.0, len(settings.connections)
    for workers in settings.workers:
        every = _contestants(settings, bundle, workers).values()
        total += sum(choosing_s(one, count, 1, _CHOOSING_S + _OVERHEAD_S, _SETTLE_S) for one in every)
        total += settings.rounds * len(every) * count * (settings.seconds + _OVERHEAD_S)
    return total
