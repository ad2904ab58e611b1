"""Search the settings of a server for the highest rate under a latency objective.

Every candidate is started and gets one round of the slo scenario. The two best candidates and the default then run side by side
(one under load at a time) in an ordinary benchmark of several rounds. A candidate is recommended only if it is significantly
better than the default there.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bundle.atomic_file import atomic_write
from loadtest.analysis.summary import slo_capacity
from loadtest.benchmark.result import Result, write_result
from loadtest.benchmark.rounds import run_benchmark
from loadtest.errors import LoadtestError
from loadtest.lanes.lineup import Lineup
from loadtest.settings import BenchSettings

DEFAULT: Final = "default"
_FINALISTS: Final = 2
_SHORT: Final = {"max_batch_size": "batch", "queue_delay_ms": "delay"}
_BATCHES: Final = (1, 8, 32)
_DELAYS_MS: Final = (0.0, 2.0)

Changes = dict[str, Any]
# Starts one server with changed settings for the duration of a block, as the only lane of a lineup. The number distinguishes
# servers that run at the same time.
OpenLane = Callable[[Changes, int], AbstractContextManager[Lineup]]


@dataclass(frozen=True)
class Screened:
    """A candidate after its one round.

    Args:
        requests_per_s: the highest rate that met the objective; None if there is none.
        failure: why there is none.
    """

    changes: Changes
    requests_per_s: float | None
    failure: str | None = None

    def text(self) -> str:
        """The candidate in one line."""
        rate = (
            f"{self.requests_per_s:8.1f} requests/s" if self.requests_per_s is not None else f"{'none':>8}           "
        )
        return f"{rate}   {label(self.changes)}" + (f" ({self.failure})" if self.failure is not None else "")


@dataclass(frozen=True)
class Tuned:
    """The recommended changes to the default (none if no candidate is better), and the evidence."""

    changes: Changes
    screened: tuple[Screened, ...]
    result: Result

    def toml(self) -> str | None:
        """The server's table for trident.toml; None if the default is the best."""
        if not self.changes:
            return None
        return f"[{self.result.lanes[0].lane.server}]\n" + "".join(
            f"{key} = {value}\n" for key, value in self.changes.items()
        )


def candidates(cores: int, default: Changes, in_effect: Callable[[Changes], Changes]) -> list[Changes]:
    """All combinations of workers and threads that fill the cores, batch sizes and queue delays, without those that are
    equivalent to another one or to the default.

    Args:
        in_effect: what the server makes of such settings: TorchServe's delay is in whole milliseconds, for example.
    """
    pairs = [(workers, cores // workers) for workers in range(1, cores + 1) if cores % workers == 0]
    found: list[Changes] = []
    for (workers, threads), batch, delay in itertools.product(pairs, _BATCHES, _DELAYS_MS):
        one = {"workers": workers, "threads": threads, "max_batch_size": batch, "queue_delay_ms": delay}
        same = [_effect(in_effect(other)) == _effect(in_effect(one)) for other in (*found, default)]
        if not any(same):
            found.append(one)
    return found


def _effect(changes: Changes) -> Changes:
    """A batch of one has no delay."""
    if changes["max_batch_size"] == 1:
        changes = changes | {"queue_delay_ms": 0.0}
    return changes


def label(changes: Changes) -> str:
    """The name of a candidate in tables."""
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
        tried: the candidates, without the default, which is always in the final benchmark.
        settings: of the final benchmark; its scenario is `slo`.
        folder: where the result of the final benchmark is stored.
    """
    screening = settings.model_copy(update={"rounds": 1, "ceiling_s": 0.0, "calibration_s": 0.0})
    screened = []
    for changes in tried:
        screened.append(_screen(open_lane, changes, screening))
        on_candidate(screened[-1])
    best = sorted(screened, key=lambda one: one.requests_per_s or 0.0, reverse=True)[:_FINALISTS]
    finalists: dict[str, Changes] = {DEFAULT: {}}
    finalists |= {label(one.changes): one.changes for one in best if one.requests_per_s is not None}
    with ExitStack() as started:
        lanes = {
            name: started.enter_context(open_lane(changes, number))
            for number, (name, changes) in enumerate(finalists.items())
        }
        result = run_benchmark(_side_by_side(lanes), settings, folder)
    write_result(result, folder)
    return Tuned(finalists[_winner(result)], tuple(screened), result)


def _screen(open_lane: OpenLane, changes: Changes, settings: BenchSettings) -> Screened:
    name = label(changes)
    try:
        with open_lane(changes, 0) as lane:
            result = run_benchmark(_side_by_side({name: lane}), settings)
    except LoadtestError as error:  # for example, it does not start with these settings; others may
        return Screened(changes, None, str(error))
    found = slo_capacity(result, name)
    if found is not None:
        return Screened(changes, found.requests_per_s.value)
    valid = bool(result.valid_runs)
    problem = next(iter(result.problems), "no answer within the timeout")
    return Screened(changes, None, "no rate met the objective" if valid and result.sound else problem)


def _winner(result: Result) -> str:
    """The lane with the highest rate among those significantly above the default; otherwise the default."""
    wrong = {run.lane for run in result.runs if run.recording.wrong}
    found = {lane.name: slo_capacity(result, lane.name) for lane in result.lanes}
    default = found.pop(DEFAULT)
    rates = {name: one.requests_per_s for name, one in found.items() if one is not None and name not in wrong}
    if default is None:  # no rate met the objective; a candidate wins if it met the objective in every round
        runs = [run for run in result.runs if run.lane == DEFAULT and not (run.repeated or run.load.probe)]
        known = bool(runs) and all(run.invalid_reason is None for run in runs)
        better = {name: rate for name, rate in rates.items() if known and rate.interval and rate.interval.low > 0}
    else:
        before, known = default.requests_per_s, not default.at_least
        better = {
            name: rate for name, rate in rates.items() if known and rate.value > before.value and not rate.ties(before)
        }
    return max(better, key=lambda name: better[name].value, default=DEFAULT)


def write_tuned(tuned: Tuned, path: Path) -> None:
    """Write the recommended settings, with the candidates' rates as comments; the file is complete or absent."""
    lines = [
        "# Requests/s of the candidates in one round each. The final benchmark is in the report beside this file.\n"
    ]
    lines += [f"# {' '.join(one.text().split())}\n" for one in tuned.screened]
    lines.append(tuned.toml() or "# No candidate was significantly better than the default.\n")
    atomic_write(path, "".join(lines))


def _side_by_side(lanes: dict[str, Lineup]) -> Lineup:
    """Join lineups of one lane each; the lanes get new names."""
    joined, serving, ceilings = [], {}, {}
    for name, lineup in lanes.items():
        (lane,) = lineup.lanes
        joined.append(lane.model_copy(update={"name": name}))
        if lane.name in lineup.serving:
            serving[name] = lineup.serving[lane.name]
        if lane.name in lineup.ceilings:
            ceilings[name] = lineup.ceilings[lane.name]
    return replace(next(iter(lanes.values())), lanes=tuple(joined), serving=serving, ceilings=ceilings)
