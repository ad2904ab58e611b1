"""Search the settings of a server for the most requests per second under a latency objective.

Every candidate is started and given the slo scenario once; the best one and the defaults then run side by side (one
under load at a time) in an ordinary benchmark of several rounds, which is the evidence. What is not better there is not
recommended.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtest.benchmark import Lineup, run_benchmark
from loadtest.lanes import Stack
from loadtest.result import Result, write_result
from loadtest.scenarios import Slo
from loadtest.settings import BenchSettings
from loadtest.statistics import Estimate
from loadtest.summary import slo_capacity
from serving.bundle import Bundle

DEFAULT, TUNED = "default", "tuned"
_BATCHES: Final = (1, 8, 32)
_DELAYS_MS: Final = (0.0, 2.0)

Changes = dict[str, Any]
# Starts one server with changed settings, for the duration of a block; the number keeps simultaneous ones apart.
OpenStack = Callable[[Changes, int], AbstractContextManager[Stack]]


@dataclass(frozen=True)
class Screened:
    """A candidate after its one round: requests/s under the objective, or why there is no such rate."""

    changes: Changes
    requests_per_s: float
    why_none: str = ""


@dataclass(frozen=True)
class Tuned:
    """What was found: the changes to the defaults (none, if nothing was better), and the evidence."""

    changes: Changes
    screened: tuple[Screened, ...]
    default: Estimate | None
    tuned: Estimate | None
    result: Result

    def toml(self) -> str:
        """For trident.toml."""
        return "".join(f"{key} = {value}\n" for key, value in self.changes.items())


def candidates(cores: int) -> list[Changes]:
    """Every way to fill the cores with workers of equal threads, times batch sizes, times delays."""
    pairs = [(workers, cores // workers) for workers in range(1, cores + 1) if cores % workers == 0]
    return [
        {"workers": workers, "threads": threads, "max_batch_size": batch, "queue_delay_ms": delay}
        for (workers, threads), batch, delay in itertools.product(pairs, _BATCHES, _DELAYS_MS)
        if batch > 1 or delay == 0
    ]


def tune(
    open_stack: OpenStack,
    tried: Sequence[Changes],
    bundle: Bundle,
    slo: Slo,
    settings: BenchSettings,
    cores: tuple[tuple[int, ...], tuple[int, ...]],
    folder: Path,
    on_candidate: Callable[[Screened], None],
) -> Tuned:
    """Search one server's settings.

    Args:
        settings: of the final benchmark; its scenario is `slo`.
        cores: of the servers and of the generator.
        folder: where the final benchmark is kept.
    """
    screening = settings.model_copy(update={"rounds": 1, "scenarios": (slo,), "ceiling_s": 0.0, "calibration_s": 0.0})
    screened = []
    for changes in tried:
        with open_stack(changes, 0) as stack:
            result = run_benchmark(_lineup({TUNED: stack}, bundle, cores), screening)
        found = slo_capacity(result, TUNED)
        why_none = next(iter(result.faults), "no rate kept the objective") if found is None else ""
        screened.append(Screened(changes, found.requests_per_s.value if found is not None else 0.0, why_none))
        on_candidate(screened[-1])
    best = max(screened, key=lambda candidate: candidate.requests_per_s).changes
    with ExitStack() as started:
        stacks = {DEFAULT: started.enter_context(open_stack({}, 0)), TUNED: started.enter_context(open_stack(best, 1))}
        result = run_benchmark(
            _lineup(stacks, bundle, cores), settings.model_copy(update={"scenarios": (slo,)}), folder
        )
    write_result(result, folder)
    before, after = (slo_capacity(result, lane) for lane in (DEFAULT, TUNED))
    better = after is not None and (
        before is None
        or (
            after.requests_per_s.value > before.requests_per_s.value
            and not after.requests_per_s.ties(before.requests_per_s)
        )
    )
    return Tuned(
        changes=best if better else {},
        screened=tuple(screened),
        default=before.requests_per_s if before is not None else None,
        tuned=after.requests_per_s if after is not None else None,
        result=result,
    )


def write_tuned(tuned: Tuned, path: Path) -> None:
    """The best settings as a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(tuned.toml() or "# nothing was better than the defaults\n")
    temporary.replace(path)


def _lineup(stacks: dict[str, Stack], bundle: Bundle, cores: tuple[tuple[int, ...], tuple[int, ...]]) -> Lineup:
    lanes = [
        lane.model_copy(update={"lane": name})
        for name, stack in stacks.items()
        for lane in stack.lanes(bundle, ("http",), ("picture",))
    ]
    ceilings = {name: spec for name, stack in stacks.items() if (spec := stack.ceiling()) is not None}
    serving = {name: dict(stack.serving) for name, stack in stacks.items()}
    return Lineup(tuple(lanes), bundle, serving, ceilings, *cores)
