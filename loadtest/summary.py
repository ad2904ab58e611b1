"""A result, condensed: one row per lane and load, over all rounds."""

from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.result import Result, Run
from loadtest.statistics import mean, merged, percentile_s


@dataclass(frozen=True)
class Row:
    """One lane under one load. Percentiles are in seconds, None where there were too few requests to tell."""

    lane: str
    scenario: str
    concurrency: int
    requests: int
    errors: int
    requests_per_s: float
    p50_s: float | None
    p90_s: float | None
    p95_s: float | None
    p99_s: float | None
    max_s: float


@dataclass(frozen=True)
class Headline:
    """One lane in a line: latency of a lone request, and the highest throughput seen."""

    lane: str
    parity: str
    single: Row | None
    peak: Row | None
    errors: int


def rows(result: Result) -> list[Row]:
    """In the order of the lanes and loads."""
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for lane in result.lanes:
        for run in result.runs:
            if run.lane == lane.name:
                groups.setdefault((run.lane, run.load.scenario, run.load.concurrency), []).append(run)
    return [_row(*key, runs) for key, runs in groups.items()]


def headlines(result: Result) -> list[Headline]:
    """One per lane."""
    all_rows = rows(result)
    lines = []
    for lane in result.lanes:
        own = [row for row in all_rows if row.lane == lane.name]
        parity = f"{lane.golden_pictures} of {lane.golden_pictures}" if not lane.faults else "FAILED"
        lines.append(
            Headline(
                lane=lane.name,
                parity=parity,
                single=next((row for row in own if row.concurrency == 1), None),
                peak=max(own, key=lambda row: row.requests_per_s, default=None),
                errors=sum(row.errors for row in own),
            )
        )
    return lines


def milliseconds(seconds: float | None) -> str:
    """For tables: three significant digits, or 'too few'."""
    if seconds is None:
        return "too few"
    value = seconds * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _row(lane: str, scenario: str, concurrency: int, runs: Iterable[Run]) -> Row:
    recordings = [run.recording for run in runs]
    histogram = merged(recording.latencies for recording in recordings)
    return Row(
        lane=lane,
        scenario=scenario,
        concurrency=concurrency,
        requests=sum(recording.answered + recording.failed for recording in recordings),
        errors=sum(recording.failed for recording in recordings),
        requests_per_s=mean(recording.answered / recording.seconds for recording in recordings),
        p50_s=percentile_s(histogram, 50),
        p90_s=percentile_s(histogram, 90),
        p95_s=percentile_s(histogram, 95),
        p99_s=percentile_s(histogram, 99),
        max_s=max(recording.max_latency_s for recording in recordings),
    )
