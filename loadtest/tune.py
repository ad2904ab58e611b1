"""Search the settings of a server for the most requests per second under a latency objective.

Every candidate is started and given the slo scenario once; the best of them and the default then run side by side
(one under load at a time) in an ordinary benchmark of several rounds, which is the evidence. What is not better there is
not recommended.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bundle.atomic_file import atomic_write
from loadtest.benchmark import Lineup, run_benchmark
from loadtest.errors import LoadtestError
from loadtest.result import Result, write_result
from loadtest.settings import BenchSettings
from loadtest.summary import slo_capacity

DEFAULT: Final = "default"
_FINALISTS: Final = 2
_SHORT: Final = {"max_batch_size": "batch", "queue_delay_ms": "delay"}
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

    def text(self) -> str:
        """In a line."""
        return f"{self.requests_per_s:8.1f} requests/s   {label(self.changes)}" + (
            f" ({self.why_none})" if self.why_none else ""
        )


@dataclass(frozen=True)
class Tuned:
    """What was found: the changes to the default (none, if nothing was better), and the evidence."""

    changes: Changes
    screened: tuple[Screened, ...]
    result: Result

    def toml(self) -> str:
        """The server's table in trident.toml; empty if nothing changes."""
        table = f"[{self.result.lanes[0].target.server}]\n" if self.changes else ""
        return table + "".join(f"{key} = {value}\n" for key, value in self.changes.items())


def candidates(server: str, cores: int, default: Changes) -> list[Changes]:
    """Every way to fill the cores with workers of equal threads, times batch sizes, times delays; without what is the
    same as others or as the default.
    """
    pairs = [(workers, cores // workers) for workers in range(1, cores + 1) if cores % workers == 0]
    found: list[Changes] = []
    for (workers, threads), batch, delay in itertools.product(pairs, _BATCHES, _DELAYS_MS):
        one = {"workers": workers, "threads": threads, "max_batch_size": batch, "queue_delay_ms": delay}
        same = [_in_effect(server, other) == _in_effect(server, one) for other in (*found, default)]
        if not any(same):
            found.append(one)
    return found


def _in_effect(server: str, changes: Changes) -> Changes:
    """Nobody waits for a batch of one; TorchServe waits for whole milliseconds, one at least."""
    if server == "torchserve":
        changes = changes | {"queue_delay_ms": float(max(1, math.ceil(changes["queue_delay_ms"])))}
    if changes["max_batch_size"] == 1:
        changes = changes | {"queue_delay_ms": 0.0}
    return changes


def label(changes: Changes) -> str:
    """A candidate's name in tables."""
    return " ".join(f"{_SHORT.get(key, key)} {value:g}" for key, value in changes.items())


def tune(
    open_lane: OpenLane,
    tried: Sequence[Changes],
    settings: BenchSettings,
    folder: Path,
    on_candidate: Callable[[Screened], None],
) -> Tuned:
    """Search one server's settings.

    Args:
        tried: other settings than the default, which is in the final benchmark anyway.
        settings: of the final benchmark; its scenario is `slo`.
        folder: where the final benchmark is kept.
    """
    screening = settings.model_copy(update={"rounds": 1, "ceiling_s": 0.0, "calibration_s": 0.0})
    screened = []
    for changes in tried:
        screened.append(_screen(open_lane, changes, screening))
        on_candidate(screened[-1])
    best = sorted(screened, key=lambda one: one.requests_per_s, reverse=True)[:_FINALISTS]
    finalists: dict[str, Changes] = {DEFAULT: {}}
    finalists |= {label(one.changes): one.changes for one in best if one.requests_per_s}
    with ExitStack() as started:
        lanes = {
            name: started.enter_context(open_lane(changes, number))
            for number, (name, changes) in enumerate(finalists.items())
        }
        result = run_benchmark(_beside(lanes), settings, folder)
    write_result(result, folder)
    return Tuned(finalists[_winner(result)], tuple(screened), result)


def _screen(open_lane: OpenLane, changes: Changes, settings: BenchSettings) -> Screened:
    name = label(changes)
    try:
        with open_lane(changes, 0) as lane:
            result = run_benchmark(_beside({name: lane}), settings)
    except LoadtestError as error:  # it does not start with these settings, say; others may
        return Screened(changes, 0.0, str(error))
    found = slo_capacity(result, name)
    if found is not None:
        return Screened(changes, found.requests_per_s.value)
    valid = any(not (run.fault or run.load.probe) for run in result.runs)
    said = next(iter(result.faults), "it answered nothing in time")
    return Screened(changes, 0.0, "no rate kept the objective" if valid and result.sound else said)


def _winner(result: Result) -> str:
    """The lane with the highest rate of those that are above the default beyond the noise; else the default."""
    wrong = {run.lane for run in result.runs if run.recording.wrong}
    found = {lane.name: slo_capacity(result, lane.name) for lane in result.lanes}
    default = found.pop(DEFAULT)
    rates = {name: one.requests_per_s for name, one in found.items() if one is not None and name not in wrong}
    if default is None:  # none of its rates kept the objective, if that could be told; a candidate's did in every round
        runs = [run for run in result.runs if run.lane == DEFAULT and not (run.repeated or run.load.probe)]
        told = bool(runs) and not any(run.fault for run in runs)
        better = {name: rate for name, rate in rates.items() if told and rate.interval and rate.interval.low > 0}
    else:
        before, known = default.requests_per_s, not default.at_least
        better = {
            name: rate for name, rate in rates.items() if known and rate.value > before.value and not rate.ties(before)
        }
    return max(better, key=lambda name: better[name].value, default=DEFAULT)


def write_tuned(tuned: Tuned, path: Path) -> None:
    """The best settings as a file, whole or not at all, with what the candidates reached."""
    lines = ["# Requests/s of the candidates, in one round each; the report beside this file has the final.\n"]
    lines += [f"# {' '.join(one.text().split())}\n" for one in tuned.screened]
    lines.append(tuned.toml() or "# Nothing was better than the default beyond the noise.\n")
    atomic_write(path, "".join(lines))


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
