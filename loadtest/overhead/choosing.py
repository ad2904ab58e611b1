"""Every contestant's best settings for each concurrency, chosen in rounds of their own.

The best of several measurements is too good by chance. So the rounds that choose are not the rounds that are reported.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from statistics import median
from typing import Final, Literal

from loadtest.errors import LoadtestError
from loadtest.overhead.contestants import Contestant
from loadtest.overhead.running import RunningContestant
from loadtest.overhead.turns import Entrant, Tool, measured

# After each round, settings below this share of the best ones are measured no more.
_STILL_IN: Final = 0.85

Start = Callable[[Contestant], AbstractContextManager[RunningContestant]]
# Called before each start and each turn with a description and 1, and with the number of turns that are skipped.
OnStep = Callable[[Literal["start", "turn", "skip"], str, int], None]


@contextmanager
def best_settings(
    variants: Sequence[Contestant],
    concurrencies: Sequence[int],
    start: Start,
    tool: Tool,
    rounds: int,
    seed: int,
    on_step: OnStep = lambda *_: None,
) -> Iterator[list[Entrant]]:
    """Start a contestant with all its settings, choose the best for each concurrency, and stop the others.

    Args:
        variants: the contestant with each of its settings. One that adapts to the load is started anew for each concurrency.
        start: starts a server.
        tool: its requests per second decide.

    Yields:
        One entrant per concurrency; all are stopped with the block.

    Raises:
        LoadtestError: a server did not start, or requests failed with all settings.
    """
    adapting = any(one.adapts for one in variants)
    groups = [[concurrency] for concurrency in concurrencies] if adapting else [list(concurrencies)]
    with ExitStack() as kept:
        entrants = []
        for group in groups:
            servers: list[tuple[str, RunningContestant, ExitStack]] = []
            with ExitStack() as stack:
                for one in variants:
                    on_step("start", f"starting {one.name} ({one.label})", 1)
                    own = stack.enter_context(ExitStack())
                    servers.append((one.label, own.enter_context(start(one)), own))
                running = [server for _, server, _ in servers]
                best = _choose(running, group, tool, rounds if len(running) > 1 else 0, seed, on_step)
                for concurrency, number in best.items():
                    label, server, own = servers[number]
                    entrants.append(Entrant(server.lane.name, concurrency, label, server))
                for number in set(best.values()):
                    kept.push(servers[number][2].pop_all())
        yield entrants


def _choose(
    servers: Sequence[RunningContestant],
    concurrencies: Sequence[int],
    tool: Tool,
    rounds: int,
    seed: int,
    on_step: OnStep,
) -> dict[int, int]:
    """The number of the best server by concurrency."""
    shuffled = random.Random(seed)  # noqa: S311 - an order, not a secret
    still_in = {concurrency: list(range(len(servers))) for concurrency in concurrencies}
    rates: dict[tuple[int, int], list[float]] = defaultdict(list)
    for round_ in range(rounds):
        for number in shuffled.sample(range(len(servers)), len(servers)):
            for concurrency in (one for one in concurrencies if number in still_in[one]):
                name = servers[number].lane.name
                on_step("turn", f"choosing settings of {name} at {concurrency}, round {round_ + 1}", 1)
                rates[concurrency, number].append(measured(servers[number], tool, concurrency).requests_per_s)
        for concurrency, numbers in still_in.items():
            typical = {number: median(rates[concurrency, number]) for number in numbers}
            best = max(typical.values())
            if not best:
                raise LoadtestError(
                    f"{servers[0].lane.name} at concurrency {concurrency}: no settings without failures"
                )
            still_in[concurrency] = [number for number in numbers if typical[number] >= _STILL_IN * best]
        if round_ + 1 < rounds:
            skipped = sum(len(servers) - len(numbers) for numbers in still_in.values())
            on_step("skip", "", skipped)
    return {
        concurrency: max(numbers, key=lambda number, at=concurrency: median(rates[at, number] or [0.0]))  # type: ignore[misc]
        for concurrency, numbers in still_in.items()
    }
