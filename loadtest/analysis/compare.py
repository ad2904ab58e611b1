"""Compare two benchmarks of the same lanes and loads: what became slower or faster beyond the noise?

For each lane, load and metric, a t-test compares the logarithms of the rounds' values. The noise is pooled over the loads of a
lane (their levels differ, their relative noise hardly), so a few rounds suffice. Holm's method keeps the chance of one false
alarm in the whole comparison at 2 %. Significant differences below `tolerance` are ignored.

The speed of a machine varies from day to day. If both results have at least three rounds of a lane's ceiling, the change of the
ceiling is subtracted from the change of the lane, and its variance added.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.stats import t as student

from loadtest.analysis.estimate import LEAST_ROUNDS, Floats
from loadtest.benchmark.result import Result, Run
from loadtest.errors import ResultError
from loadtest.histogram import merged, min_samples, percentile_ns
from loadtest.load import ClosedLoop, Load

ALPHA: Final = 0.02
TOLERANCE: Final = 0.03
Metric = Literal["p50", "p99", "requests/s"]
Change = Literal["slower", "faster", "tie"]


@dataclass(frozen=True)
class Difference:
    """One metric of one lane under one load.

    Args:
        before: the mean in A; `after`: in B.
        ratio: B over A, without the change of the ceiling; `low` and `high`: its interval at the level of the test.
    """

    lane: str
    load: Load
    metric: Metric
    before: float
    after: float
    ratio: float
    low: float
    high: float
    change: Change


@dataclass(frozen=True)
class ResultComparison:
    """The differences between two results.

    Args:
        machine: by runtime, how much faster the ceiling was in B.
        missing: lanes of A that are missing in B, or failed the parity gate there.
    """

    differences: tuple[Difference, ...]
    machine: dict[str, float]
    missing: tuple[str, ...]

    @property
    def slower(self) -> list[Difference]:
        """The differences that are regressions."""
        return [difference for difference in self.differences if difference.change == "slower"]

    @property
    def passed(self) -> bool:
        """Whether no lane is slower, and none is missing."""
        return not self.slower and not self.missing


@dataclass(frozen=True)
class _Cell:
    lane: str
    load: Load
    metric: Metric
    before: Floats
    after: Floats


def compare(before: Result, after: Result, tolerance: float = TOLERANCE) -> ResultComparison:
    """Compare `before` (A) with `after` (B).

    Raises:
        ResultError: they have no load in common, or too few rounds.
    """
    cells = _cells(before, after)
    if not cells:
        raise ResultError(
            f"the results have no lane and load in common with at least {LEAST_ROUNDS - 1} valid rounds in each; compare "
            "benchmarks with the same settings"
        )
    noise = _noise(cells)
    tested = []
    for cell in cells:
        variance, freedom = noise[cell.lane, cell.metric]
        machine, machine_variance = _machine(before, after, cell.lane)
        sign = -1 if cell.metric != "requests/s" else 1
        shift = float(cell.after.mean() - cell.before.mean()) - sign * machine
        error = math.sqrt(variance * (1 / len(cell.before) + 1 / len(cell.after)) + machine_variance)
        chance = 2 * float(student.sf(abs(shift) / error, freedom)) if error else float(shift == 0)
        tested.append((chance, cell, shift, error, freedom))
    differences = _holm(tested, tolerance)
    order = {id(cell): place for place, cell in enumerate(cells)}
    differences.sort(key=lambda pair: order[id(pair[0])])
    lanes = {lane.name for lane in after.lanes if not lane.faults}
    return ResultComparison(
        differences=tuple(difference for _, difference in differences),
        machine={
            spec.runtime: math.exp(_machine(before, after, lane)[0])
            for lane, spec in after.ceiling_specs.items()
            if _machine(before, after, lane)[1]
        },
        missing=tuple(lane.name for lane in before.lanes if not lane.faults and lane.name not in lanes),
    )


def _holm(
    tested: Sequence[tuple[float, _Cell, float, float, float]], tolerance: float
) -> list[tuple[_Cell, Difference]]:
    """Holm's step-down: the smallest p-value is tested at ALPHA / n, the next at ALPHA / (n - 1) ... up to the first that is
    not significant.
    """
    found, open_ = [], True
    for place, (chance, cell, shift, error, freedom) in enumerate(sorted(tested, key=lambda entry: entry[0])):
        level = ALPHA / (len(tested) - place)
        open_ = open_ and chance <= level
        margin = float(student.isf(level / 2, freedom)) * error
        change: Change = "tie"
        if open_ and abs(shift) > math.log1p(tolerance):
            worse = shift > 0 if cell.metric != "requests/s" else shift < 0
            change = "slower" if worse else "faster"
        difference = Difference(
            lane=cell.lane,
            load=cell.load,
            metric=cell.metric,
            before=float(np.exp(cell.before.mean())),
            after=float(np.exp(cell.after.mean())),
            ratio=math.exp(shift),
            low=math.exp(shift - margin),
            high=math.exp(shift + margin),
            change=change,
        )
        found.append((cell, difference))
    return found


def _cells(before: Result, after: Result) -> list[_Cell]:
    cells = []
    for lane in before.lanes:
        loads = dict.fromkeys(
            run.load for run in before.valid_runs if run.lane == lane.name and run.load.scenario != "slo"
        )
        for load in loads:
            for metric, value in _METRICS.items():
                if metric == "requests/s" and not isinstance(load.loop, ClosedLoop):
                    continue
                sides = [_values(result, lane.name, load, value) for result in (before, after)]
                if all(len(side) >= LEAST_ROUNDS - 1 for side in sides):
                    cells.append(_Cell(lane.name, load, metric, *(np.log(side) for side in sides)))
    return cells


def _values(result: Result, lane: str, load: Load, value: Callable[[Run], float | None]) -> list[float]:
    found = [value(run) for run in result.valid_runs if (run.lane, run.load) == (lane, load)]
    return [one for one in found if one]


def _noise(cells: Sequence[_Cell]) -> dict[tuple[str, Metric], tuple[float, float]]:
    """By lane and metric: the variance between rounds, and its degrees of freedom."""
    squares: dict[tuple[str, Metric], list[float]] = {}
    for cell in cells:
        entry = squares.setdefault((cell.lane, cell.metric), [0.0, 0.0])
        for side in (cell.before, cell.after):
            entry[0] += float(((side - side.mean()) ** 2).sum())
            entry[1] += len(side) - 1
    return {key: (total / freedom, freedom) for key, (total, freedom) in squares.items()}


def _machine(before: Result, after: Result, lane: str) -> tuple[float, float]:
    """The logarithm of how much faster the lane's ceiling was in B, and its variance; zeros if one of them is unknown."""
    shift, variance = 0.0, 0.0
    for sign, result in ((-1, before), (1, after)):
        spec = result.ceiling_specs.get(lane)
        logs = np.log([ceiling.best for ceiling in result.ceilings if ceiling.spec == spec])
        if len(logs) < LEAST_ROUNDS:
            return 0.0, 0.0
        shift += sign * float(logs.mean())
        variance += float(logs.var(ddof=1)) / len(logs)
    return shift, variance


def _percentile(percentile: float) -> Callable[[Run], float | None]:
    def of(run: Run) -> float | None:
        histogram = merged([run.recording.latencies])
        if histogram.total_count < min_samples(percentile):
            return None
        return percentile_ns(histogram, percentile) / 1e6

    return of


_METRICS: Final[dict[Metric, Callable[[Run], float | None]]] = {
    "p50": _percentile(50),
    "p99": _percentile(99),
    "requests/s": lambda run: run.recording.requests_per_s,
}
