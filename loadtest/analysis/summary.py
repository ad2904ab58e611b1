"""Summaries of a result: one per lane and load over all valid rounds, and one headline per lane."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.analysis.estimate import Estimate, mean, mean_of, percentile_of
from loadtest.benchmark.result import Result, Run
from loadtest.lanes.ceiling import CeilingSpec
from loadtest.load import ClosedLoop, Load, OpenLoop
from loadtest.scenarios import Slo

STAGES: Final = ("decode", "queue", "inference", "handler")


@dataclass(frozen=True)
class LoadSummary:
    """One lane under one load. Percentiles are in seconds; None from too few requests.

    Args:
        errors: failed requests.
        invalid: the number of excluded runs.
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
    def rest_s(self) -> float:
        """Mean latency minus the server's stages: network, HTTP, framework and client."""
        return max(0.0, self.mean_s - sum(self.stages_s.values()))


@dataclass(frozen=True)
class Capacity:
    """The capacity of a lane in requests per second.

    Args:
        under_slo: it is the highest rate that met the objective of the slo scenario; otherwise the highest throughput.
        condition: the objective, or the load, in words.
        at_least: the next higher rate could not be measured (the generator was late, or other servers were not idle); the
            true capacity may be higher.
    """

    requests_per_s: Estimate
    under_slo: bool
    condition: str
    at_least: bool = False

    def text(self) -> str:
        """The text in tables: `1230 (1200 to 1310)` or `at least 1230 (1200 to 1310)`."""
        return ("at least " if self.at_least else "") + with_interval(self.requests_per_s)


@dataclass(frozen=True)
class Headline:
    """The headline figures of one lane.

    Args:
        single: the single-stream scenario.
        peak: the closed loop with the highest throughput.
        of_ceiling: capacity divided by the ceiling of the lane's runtime; the serving tax is one minus that.
    """

    lane: str
    parity: str
    single: LoadSummary | None
    peak: LoadSummary | None
    capacity: Capacity | None
    of_ceiling: Estimate | None
    cost_per_million: float | None
    errors: int
    invalid: int


def load_summaries(result: Result) -> list[LoadSummary]:
    """The summaries in the order of the lanes and loads, without probes and the search of slo."""
    groups: dict[tuple[str, Load], list[Run]] = {}
    for parity in result.lanes:
        for run in result.runs:
            if run.lane == parity.name and not run.load.probe and run.load.scenario != "slo":
                groups.setdefault((run.lane, run.load), []).append(run)
    return [summary for (lane, load), runs in groups.items() if (summary := _summary(lane, load, runs)) is not None]


def headlines(result: Result) -> list[Headline]:
    """One headline per lane."""
    summaries = load_summaries(result)
    lines = []
    for parity in result.lanes:
        own = [summary for summary in summaries if summary.lane == parity.name]
        closed = [summary for summary in own if isinstance(summary.load.loop, ClosedLoop)]
        single = next((summary for summary in closed if summary.load.scenario == "single-stream"), None)
        peak = max(closed, key=lambda summary: summary.requests_per_s.value, default=None)
        capacity = slo_capacity(result, parity.name) or _peak_capacity(peak)
        ceiling = ceiling_of(result, result.ceiling_specs.get(parity.name))
        price = result.settings.price_per_hour
        rate = capacity.requests_per_s.value if capacity is not None else 0.0
        lines.append(
            Headline(
                lane=parity.name,
                parity=parity.parity,
                single=single,
                peak=peak,
                capacity=capacity,
                of_ceiling=capacity.requests_per_s.ratio(ceiling) if capacity is not None and ceiling else None,
                cost_per_million=price / 3600 / rate * 1e6 if price is not None and rate else None,
                errors=sum(run.recording.failed for run in result.runs if run.lane == parity.name and _counts(run)),
                invalid=sum(
                    1
                    for run in result.runs
                    if run.lane == parity.name and run.invalid_reason is not None and not run.repeated
                ),
            )
        )
    return lines


def slo_capacity(result: Result, lane: str) -> Capacity | None:
    """The mean over rounds of the highest rate that met the objective; None if it was not searched for, or not found."""
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
        held, failed = scenario.bracket([(run.load, run.recording) for run in runs if run.invalid_reason is None])
        distorted = [
            run.load.loop.rate for run in runs if run.invalid_reason is not None and isinstance(run.load.loop, OpenLoop)
        ]
        bounded = any(held < rate < failed for rate in distorted)  # unknown whether these rates meet the objective
        if any(run.recording.wrong for run in runs) or not (held or (runs and not bounded)):
            continue  # the search was ended by a wrong answer, or has no valid probe
        found.append(held)
        at_least = at_least or bounded
    if not any(found):
        return None
    return Capacity(mean_of(found), True, f"p{scenario.percentile:g} within {scenario.slo_ms:g} ms", at_least)


def ceiling_of(result: Result, spec: CeilingSpec | None) -> Estimate | None:
    """The ceiling over the rounds; None if it was not measured."""
    measured = [ceiling.best for ceiling in result.ceilings if ceiling.spec == spec]
    return mean_of(measured) if measured else None


def milliseconds(seconds: Estimate | float | None) -> str:
    """The text in tables: three significant digits, or 'too few'."""
    if seconds is None:
        return "too few"
    value = (seconds.value if isinstance(seconds, Estimate) else seconds) * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def with_interval(value: Estimate | None, unit: float = 1.0, digits: int = 3) -> str:
    """The text in tables: `1.23 (1.20 to 1.31)`; without the interval from too few rounds."""
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
    """Whether a run's errors count for the lane: not if its load is meant to overload the server."""
    return not run.repeated and not run.load.probe and run.load.scenario not in ("slo", "spike")


def _peak_capacity(peak: LoadSummary | None) -> Capacity | None:
    if peak is None:
        return None
    return Capacity(peak.requests_per_s, False, f"closed loop, {peak.load.loop.label}")


def _summary(lane: str, load: Load, runs: Sequence[Run]) -> LoadSummary | None:
    valid = [run for run in runs if run.invalid_reason is None]
    invalid = sum(1 for run in runs if run.invalid_reason is not None and not run.repeated)
    if not valid:
        return None
    recordings = [run.recording for run in valid]
    histograms = [recording.latencies for recording in recordings]
    resources = [run.resources for run in valid if run.resources is not None]
    answered = sum(recording.answered for recording in recordings)
    seconds = sum(recording.seconds for recording in recordings)
    cpu_s = sum(use.cores for use in resources) / len(resources) * seconds if resources else None
    return LoadSummary(
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
    """Mean seconds per stage, from the server's own counters, or else from Server-Timing."""
    found: dict[str, list[float]] = {}
    for run in runs:
        source = run.server_stages_s or run.recording.stages_s
        for stage in STAGES:
            if stage in source:
                found.setdefault(stage, []).append(source[stage])
    return {stage: mean(values) for stage, values in found.items()}
