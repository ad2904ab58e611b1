"""A result, condensed: one row per lane and load over all valid rounds, one headline per lane."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.ceiling import CeilingSpec
from loadtest.load import ClosedLoop, Load, OpenLoop
from loadtest.result import Result, Run
from loadtest.scenarios import Slo
from loadtest.statistics import Estimate, mean, mean_of, percentile_of

STAGES: Final = ("decode", "queue", "inference", "handler")


@dataclass(frozen=True)
class Row:
    """One lane under one load. Percentiles are in seconds, None where there were too few requests to tell.

    `invalid`: runs that are left out. `missing_s`: what the client saw beyond the stages that the server counts.
    """

    lane: str
    load: Load
    requests: int
    errors: int
    invalid: int
    offered_per_s: float
    requests_per_s: Estimate
    p50_s: Estimate | None
    p90_s: Estimate | None
    p95_s: Estimate | None
    p99_s: Estimate | None
    max_s: float
    mean_s: float
    stages_s: dict[str, float]
    cpu_ms_per_request: float | None
    cores: float | None
    memory_mib: float | None
    threads: int | None

    @property
    def missing_s(self) -> float:
        """Mean latency minus the stages: network, HTTP, framework, and whatever the server does not count."""
        return max(0.0, self.mean_s - sum(self.stages_s.values()))


@dataclass(frozen=True)
class Capacity:
    """The most requests per second of a lane, and what that means.

    `under_slo`: it is the highest rate that kept the objective of the slo scenario; else the highest throughput seen.
    `at_least`: the next higher rate could not be measured (the generator was late, or others were not idle), so that the
    server may do more.
    """

    requests_per_s: Estimate
    under_slo: bool
    condition: str
    at_least: bool = False

    def text(self) -> str:
        """For tables: `1230 (1200 to 1310)`, with `at least` before it where that is all that is known."""
        return ("at least " if self.at_least else "") + with_interval(self.requests_per_s)


@dataclass(frozen=True)
class Headline:
    """One lane in a line.

    `of_ceiling`: capacity over the in-process ceiling of the lane's runtime; the serving tax is one minus that.
    """

    lane: str
    parity: str
    single: Row | None
    peak: Row | None
    capacity: Capacity | None
    of_ceiling: Estimate | None
    cost_per_million: float | None
    errors: int
    invalid: int


def rows(result: Result) -> list[Row]:
    """In the order of the lanes and loads; probes and the search of slo are no rows."""
    groups: dict[tuple[str, Load], list[Run]] = {}
    for lane in result.lanes:
        for run in result.runs:
            if run.lane == lane.name and not run.load.probe and run.load.scenario != "slo":
                groups.setdefault((run.lane, run.load), []).append(run)
    return [row for (lane_, load), runs in groups.items() if (row := _row(lane_, load, runs)) is not None]


def headlines(result: Result) -> list[Headline]:
    """One per lane."""
    table = rows(result)
    lines = []
    for lane in result.lanes:
        own = [row for row in table if row.lane == lane.name]
        closed = [row for row in own if isinstance(row.load.loop, ClosedLoop)]
        single = next((row for row in closed if row.load.scenario == "single-stream"), None)
        peak = max(closed, key=lambda row: row.requests_per_s.value, default=None)
        capacity = slo_capacity(result, lane.name) or _peak_capacity(peak)
        ceiling = ceiling_of(result, result.ceiling_specs.get(lane.name))
        price = result.settings.price_per_hour
        rate = capacity.requests_per_s.value if capacity is not None else 0.0
        lines.append(
            Headline(
                lane=lane.name,
                parity=lane.parity,
                single=single,
                peak=peak,
                capacity=capacity,
                of_ceiling=capacity.requests_per_s.ratio(ceiling) if capacity is not None and ceiling else None,
                cost_per_million=price / 3600 / rate * 1e6 if price is not None and rate else None,
                errors=sum(run.recording.failed for run in result.runs if run.lane == lane.name and _counts(run)),
                invalid=sum(1 for run in result.runs if run.lane == lane.name and run.fault and not run.repeated),
            )
        )
    return lines


def slo_capacity(result: Result, lane: str) -> Capacity | None:
    """The mean over rounds of the highest rate that kept the objective; None if that was not searched, or not found."""
    scenario = next((one for one in result.settings.scenarios if isinstance(one, Slo)), None)
    if scenario is None:
        return None
    found, at_least = [], False
    for round_ in range(result.settings.rounds):
        runs = [
            run
            for run in result.runs
            if (run.lane, run.round, run.load.scenario) == (lane, round_, "slo")
            and not (run.repeated or run.load.probe)
        ]
        held, failed = scenario.bracket([(run.load, run.recording) for run in runs if not run.fault])
        spoiled = [run.load.loop.rate for run in runs if run.fault and isinstance(run.load.loop, OpenLoop)]
        bounded = any(held < rate < failed for rate in spoiled)  # who knows whether it would have held there
        if any(run.recording.wrong for run in runs) or not (held or (runs and not bounded)):
            continue  # it was cut short, or says nothing
        found.append(held)
        at_least = at_least or bounded
    if not any(found):
        return None
    return Capacity(mean_of(found), True, f"p{scenario.percentile:g} within {scenario.slo_ms:g} ms", at_least)


def ceiling_of(result: Result, spec: CeilingSpec | None) -> Estimate | None:
    """What the runtime of a lane does without a server, over the rounds."""
    measured = [ceiling.best for ceiling in result.ceilings if ceiling.spec == spec]
    return mean_of(measured) if measured else None


def milliseconds(seconds: Estimate | float | None) -> str:
    """For tables: three significant digits, or 'too few'."""
    if seconds is None:
        return "too few"
    value = (seconds.value if isinstance(seconds, Estimate) else seconds) * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def with_interval(value: Estimate | None, unit: float = 1.0, digits: int = 3) -> str:
    """`1.23 (1.20 to 1.31)`, or without the interval where there were too few rounds."""
    if value is None:
        return "too few"
    text = _significant(value.value * unit, digits)
    interval = value.interval
    if interval is None:
        return text
    return f"{text} ({_significant(interval.low * unit, digits)} to {_significant(interval.high * unit, digits)})"


def _significant(number: float, digits: int) -> str:
    return f"{number:.{digits}g}" if number < 10**digits - 0.5 else f"{number:.0f}"


def _counts(run: Run) -> bool:
    """Whether a run's errors are the lane's: not those of loads that are meant to be too much."""
    return not run.repeated and not run.load.probe and run.load.scenario not in ("slo", "spike")


def _peak_capacity(peak: Row | None) -> Capacity | None:
    if peak is None:
        return None
    return Capacity(peak.requests_per_s, False, f"closed loop, {peak.load.loop.label}")


def _row(lane: str, load: Load, runs: Sequence[Run]) -> Row | None:
    valid = [run for run in runs if not run.fault]
    invalid = sum(1 for run in runs if run.fault and not run.repeated)
    if not valid:
        return None
    recordings = [run.recording for run in valid]
    histograms = [recording.latencies for recording in recordings]
    resources = [run.resources for run in valid if run.resources is not None]
    answered = sum(recording.answered for recording in recordings)
    seconds = sum(recording.seconds for recording in recordings)
    cpu_s = sum(use.cores for use in resources) / len(resources) * seconds if resources else None
    return Row(
        lane=lane,
        load=load,
        requests=sum(recording.answered + recording.failed for recording in recordings),
        errors=sum(recording.failed for recording in recordings),
        invalid=invalid,
        offered_per_s=mean(recording.offered_per_s for recording in recordings),
        requests_per_s=mean_of([recording.requests_per_s for recording in recordings]),
        p50_s=percentile_of(histograms, 50),
        p90_s=percentile_of(histograms, 90),
        p95_s=percentile_of(histograms, 95),
        p99_s=percentile_of(histograms, 99),
        max_s=max(recording.max_latency_s for recording in recordings),
        mean_s=mean(recording.mean_latency_s for recording in recordings),
        stages_s=_stages(valid),
        cpu_ms_per_request=cpu_s / answered * 1000 if cpu_s is not None and answered else None,
        cores=mean(use.cores for use in resources) if resources else None,
        memory_mib=max(use.memory_mib for use in resources) if resources else None,
        threads=max(use.threads for use in resources) if resources else None,
    )


def _stages(runs: Sequence[Run]) -> dict[str, float]:
    """Mean seconds per stage: the server's own counters, else the Server-Timing of its answers."""
    found: dict[str, list[float]] = {}
    for run in runs:
        source = run.server_stages_s or run.recording.stages_s
        for stage in STAGES:
            if stage in source:
                found.setdefault(stage, []).append(source[stage])
    return {stage: mean(values) for stage, values in found.items()}
