"""Search the settings of a server for the most requests per second under a latency objective.

Every candidate is started and given the slo scenario once; the best of them and the defaults then run side by side
(one under load at a time) in an ordinary benchmark of several rounds, which is the evidence. What is not better there is
not recommended.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from loadtest.benchmark import Lineup, run_benchmark
from loadtest.result import Result, write_result
from loadtest.scenarios import Slo
from loadtest.settings import BenchSettings
from loadtest.summary import slo_capacity

DEFAULT: Final = "default"
_FINALISTS: Final = 2
_BATCHES: Final = (1, 8, 32)
_DELAYS_MS: Final = (0.0, 2.0)

Changes = dict[str, Any]
# Starts one server with changed settings, for the duration of a block, as the only lane of a lineup; the number keeps
# simultaneous ones apart.
OpenLane = Callable[[Changes, int], AbstractContextManager[Lineup]]


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


def label(changes: Changes) -> str:
    """A candidate's name in tables."""
    return ", ".join(f"{key} {value:g}" for key, value in changes.items())


def tune(
    open_lane: OpenLane,
    tried: Sequence[Changes],
    slo: Slo,
    settings: BenchSettings,
    folder: Path,
    on_candidate: Callable[[Screened], None],
) -> Tuned:
    """Search one server's settings.

    Args:
        tried: other settings than the defaults, which are in the final benchmark anyway.
        settings: of the final benchmark; its scenario is `slo`.
        folder: where the final benchmark is kept.
    """
    screening = settings.model_copy(
        update={"rounds": 1, "scenarios": (slo,), "ceiling_s": 0.0, "calibration_s": 0.0, "repeats": 0}
    )
    screened = []
    for changes in tried:
        with open_lane(changes, 0) as lane:
            result = run_benchmark(_beside({DEFAULT: lane}), screening)
        found = slo_capacity(result, DEFAULT)
        why_none = next(iter(result.faults), "no rate kept the objective") if found is None else ""
        screened.append(Screened(changes, found.requests_per_s.value if found is not None else 0.0, why_none))
        on_candidate(screened[-1])
    best = sorted(screened, key=lambda one: one.requests_per_s, reverse=True)[:_FINALISTS]
    finalists: dict[str, Changes] = {DEFAULT: {}} | {label(one.changes): one.changes for one in best}
    with ExitStack() as started:
        lanes = {
            name: started.enter_context(open_lane(changes, number))
            for number, (name, changes) in enumerate(finalists.items())
        }
        result = run_benchmark(_beside(lanes), settings.model_copy(update={"scenarios": (slo,)}), folder)
    write_result(result, folder)
    return Tuned(finalists[_winner(result, list(finalists))], tuple(screened), result)


def _winner(result: Result, lanes: Sequence[str]) -> str:
    """The lane with the highest rate, if that is beyond the noise; else the default."""
    found = {lane: capacity.requests_per_s for lane in lanes if (capacity := slo_capacity(result, lane)) is not None}
    if not found:
        return DEFAULT
    best = max(found, key=lambda lane: found[lane].value)
    return DEFAULT if DEFAULT in found and found[best].ties(found[DEFAULT]) else best


def write_tuned(tuned: Tuned, path: Path) -> None:
    """The best settings as a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(tuned.toml() or "# nothing was better than the defaults\n")
    temporary.replace(path)


def _beside(lanes: dict[str, Lineup]) -> Lineup:
    """One lineup of single lanes, by their new names."""
    targets, serving, ceilings = [], {}, {}
    for name, lineup in lanes.items():
        (target,) = lineup.targets
        targets.append(target.model_copy(update={"lane": name}))
        if target.lane in lineup.serving:
            serving[name] = lineup.serving[target.lane]
        if target.lane in lineup.ceilings:
            ceilings[name] = lineup.ceilings[target.lane]
    return replace(next(iter(lanes.values())), targets=tuple(targets), serving=serving, ceilings=ceilings)
