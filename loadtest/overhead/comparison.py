"""The comparison on one core: choose every contestant's settings, then measure all in turn."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console

from bundle.store import Bundle
from loadtest.generator.client import Generator
from loadtest.generator.recording import Recording
from loadtest.generator.wrk import INSTALL_WRK, wrk_is_installed
from loadtest.lanes.ceiling import CeilingSpec, ceiling_loops
from loadtest.overhead.choosing import best_settings
from loadtest.overhead.contestants import BATCH_SIZES, TRIDENT, Contestant, contestants
from loadtest.overhead.running import running
from loadtest.overhead.steps import Steps, choosing_s, show_steps
from loadtest.overhead.table import Block, comparison_tables, constant_rate
from loadtest.overhead.turns import (
    GENERATOR,
    WARM_UP,
    WRK,
    Entrant,
    Tool,
    Turns,
    at_constant_rate,
    generator_tool,
    take_turns,
    wrk_tool,
)

_CHOOSING_S: Final = 0.5
_LEAST_PACED_S: Final = 10.0
_OVERHEAD_S: Final = 0.2  # estimate of what a turn takes besides its load, for the progress bar


@dataclass(frozen=True)
class ComparisonSettings:
    """What to measure.

    Args:
        peers: a Python with mosec, LitServe and BentoML; None: without them.
        only: names of servers; empty: all.
        choosing_rounds: rounds that choose the settings; `rounds`: those that are reported.
        paced: share of the highest rate for the run at a constant rate; 0: none.
    """

    peers: Path | None = None
    only: Sequence[str] = ()
    concurrencies: Sequence[int] = (1, 8, 16, 32)
    batch_sizes: Sequence[int] = BATCH_SIZES
    first_delay_only: bool = False
    choosing_rounds: int = 2
    rounds: int = 4
    seconds: float = 1.0
    seed: int = 0
    paced: float = 0.7


def compare(settings: ComparisonSettings, bundle: Bundle, console: Console) -> list[Block]:
    """Measure on the first core, with the load on the last one.

    Raises:
        LoadtestError: a server did not start.
    """
    cores = sorted(os.sched_getaffinity(0))
    server_cores, load_cores = cores[:1], cores[-1:]
    os.sched_setaffinity(0, load_cores)
    try:
        return _compare(settings, bundle, console, server_cores, load_cores)
    finally:
        os.sched_setaffinity(0, cores)


def _compare(
    settings: ComparisonSettings, bundle: Bundle, console: Console, server_cores: list[int], load_cores: list[int]
) -> list[Block]:
    variants = contestants(
        bundle, settings.peers, settings.only, settings.batch_sizes, first_delay_only=settings.first_delay_only
    )
    with ExitStack() as stack:
        generator = stack.enter_context(Generator())
        tools: dict[str, Tool] = {GENERATOR: generator_tool(generator, bundle, settings.seconds, load_cores)}
        if wrk_is_installed():
            tools[WRK] = wrk_tool(bundle, settings.seconds, load_cores)
        steps = stack.enter_context(Steps(console, _estimate_s(settings, list(variants.values()), len(tools))))
        entrants: list[Entrant] = []
        for every in variants.values():
            chosen = best_settings(
                every,
                settings.concurrencies,
                lambda one: running(one, bundle, server_cores),
                generator_tool(generator, bundle, _CHOOSING_S, load_cores),
                settings.choosing_rounds,
                settings.seed,
                show_steps(steps, _turn_s(_CHOOSING_S)),
            )
            entrants += stack.enter_context(chosen)
        spec = CeilingSpec(
            runtime="onnxruntime",
            precision="fp32",
            threads=1,
            max_batch_size=max(settings.batch_sizes),
            cores=tuple(server_cores),
        )
        ceiling = stack.enter_context(ceiling_loops(spec, bundle))
        done = take_turns(
            entrants,
            tools,
            lambda: ceiling(settings.seconds / 2),
            settings.rounds,
            settings.seed,
            lambda text: steps.begin(text, _turn_s(settings.seconds * 1.5)),
        )
        paced = _paced(settings, entrants, done, generator, bundle, load_cores, steps)
    return _report(settings, done, list(variants), list(tools), paced)


def _turn_s(seconds: float) -> float:
    return WARM_UP.max_s + seconds + _OVERHEAD_S


def _estimate_s(settings: ComparisonSettings, variants: Sequence[Sequence[Contestant]], tools: int) -> float:
    count = len(settings.concurrencies)
    choosing = sum(choosing_s(every, count, settings.choosing_rounds, _turn_s(_CHOOSING_S)) for every in variants)
    turns = settings.rounds * len(variants) * count * tools * _turn_s(settings.seconds * 1.5)
    return choosing + turns + (_paced_s(settings) if settings.paced else 0)


def _paced_s(settings: ComparisonSettings) -> float:
    return max(_LEAST_PACED_S, settings.seconds * settings.rounds)


def _paced(
    settings: ComparisonSettings,
    entrants: Sequence[Entrant],
    done: Turns,
    generator: Generator,
    bundle: Bundle,
    load_cores: Sequence[int],
    steps: Steps,
) -> Recording | None:
    """Latency of our service at a share of its highest rate; None if it is not requested, or there is no valid rate."""
    rates = {
        entrant.concurrency: median(turn.figures.requests_per_s for turn in turns)
        for entrant in entrants
        if entrant.name == TRIDENT and (turns := done.of(TRIDENT, entrant.concurrency, GENERATOR))
    }
    if not settings.paced or not rates:
        return None
    at = max(rates, key=lambda concurrency: rates[concurrency])
    server = next(one.server for one in entrants if (one.name, one.concurrency) == (TRIDENT, at))
    steps.begin("at a constant rate", _paced_s(settings))
    return at_constant_rate(server, generator, bundle, rates[at] * settings.paced, _paced_s(settings), load_cores)


def _report(
    settings: ComparisonSettings, done: Turns, names: list[str], tools: list[str], paced: Recording | None
) -> list[Block]:
    single = median(ceiling.single for ceiling in done.ceilings)
    batched = median(ceiling.batched for ceiling in done.ceilings)
    blocks: list[Block] = [
        f"One core. Ceiling (decode and model in a loop, without a server): {single:.0f} images/s one by one, {batched:.0f} "
        f"in batches of {max(settings.batch_sizes)}. `of ceiling`: requests/s divided by the ceiling one by one, which is "
        "measured before and after each turn.",
        f"Settings: of batches of {', '.join(map(str, settings.batch_sizes))} and each server's waiting times, those with "
        f"the most requests/s in {settings.choosing_rounds} x {_CHOOSING_S:g} s, for each server and concurrency. The best of "
        "several measurements is too good by chance, so these rounds are not part of the figures below: medians of "
        f"{settings.rounds} x {settings.seconds:g} s, in random order (seed {settings.seed}). The best peer is the one with "
        "the highest figures below, which favours the peers.",
        "Every server gets the image as the raw body of the request, decodes it with the same function and writes the answer "
        "with the same function.",
    ]
    if WRK not in tools:
        blocks.append(f"Without the columns of wrk: {INSTALL_WRK}.")
    blocks += comparison_tables(done, names, tools)
    return blocks + ([constant_rate(paced, settings.paced)] if paced is not None else [])
