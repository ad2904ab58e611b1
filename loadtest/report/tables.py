"""The report's tables of searches, spikes, soaks and containers, as text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.analysis.summary import milliseconds
from loadtest.benchmark.result import Result, Run
from loadtest.histogram import min_samples
from loadtest.load import OpenLoop
from loadtest.machine.containers import ContainerUse
from loadtest.machine.resources import ResourceUse
from loadtest.scenarios import Slo
from loadtest.scenarios.spike import recovery_s


@dataclass(frozen=True)
class ReportTable:
    """A table: title, a note on how to read it, column names, cells."""

    title: str
    note: str
    columns: tuple[str, ...]
    cells: Sequence[Sequence[str]]


def tables(result: Result) -> list[ReportTable]:
    """All tables for which there is data."""
    found = [_search(result), _spikes(result), _soaks(result), _containers(result)]
    return [table for table in found if table.cells]


def _search(result: Result) -> ReportTable:
    scenario = next((one for one in result.settings.scenarios if isinstance(one, Slo)), Slo())
    cells = []
    for run in _of(result, "slo"):
        recording, loop = run.recording, run.load.loop
        p99 = recording.percentile_ms(99) / 1000 if recording.answered >= min_samples(99) else None
        if run.invalid_reason is not None:
            outcome = f"unknown ({run.invalid_reason})"
        else:
            outcome = "met" if scenario.held(recording) else "missed"
        requests = recording.answered + recording.failed
        cells.append(
            (run.lane, str(run.round + 1), loop.label, str(requests), milliseconds(p99), str(recording.failed), outcome)
        )
    columns = ("lane", "round", "offered", "requests", "p99 ms", "failed", "objective")
    note = f"Bisection; the objective is p{scenario.percentile:g} of all requests within {scenario.slo_ms:g} ms."
    return ReportTable("Search for the highest rate", note, columns, cells)


def _spikes(result: Result) -> ReportTable:
    cells = []
    for run in _of(result, "spike"):
        assert isinstance(run.load.loop, OpenLoop)
        seconds = recovery_s(run.load.loop, run.recording)
        recovered = f"{seconds:.1f} s" if seconds is not None else "not within the run"
        longest = milliseconds(run.recording.max_latency_s)
        cells.append((run.lane, str(run.round + 1), run.load.loop.label, longest, str(run.recording.failed), recovered))
    columns = ("lane", "round", "offered", "max ms", "failed", "recovery")
    note = (
        "Recovery: time from the end of the spike until three successive bins of the timeline have no failure, and a median "
        "of at most twice the median before the spike."
    )
    return ReportTable("Spikes", note, columns, cells)


def _soaks(result: Result) -> ReportTable:
    cells = []
    for run in _of(result, "soak"):
        line = run.recording.timeline
        known = [(index * line.bin_s, p50) for index, p50 in enumerate(line.p50_ms) if p50 is not None]
        drift = f"{theil_sen(known) * 60:+.3g} ms" if len(known) > 2 else "-"
        use = run.resources
        memory = f"{use.memory_start_mib:.0f} → {use.memory_end_mib:.0f} MiB" if use is not None else "-"
        cells.append(
            (
                run.lane,
                str(run.round + 1),
                run.load.loop.label,
                f"{run.recording.seconds:.0f} s",
                drift,
                memory,
            )
        )
    columns = ("lane", "round", "offered", "length", "drift of the median per minute", "memory")
    return ReportTable("Soaks", "Drift: the Theil-Sen slope of the median latency.", columns, cells)


def _containers(result: Result) -> ReportTable:
    used: dict[tuple[str, str], list[tuple[ResourceUse, ContainerUse]]] = {}
    for run in result.valid_runs:
        if run.resources is not None and run.resources.container is not None:
            used.setdefault((run.lane, run.load.label), []).append((run.resources, run.resources.container))
    cells = []
    for (lane, load), uses in used.items():
        cpu_s, seconds = sum(use.cpu_s for use, _ in uses), sum(use.seconds for use, _ in uses)
        stopped, periods = sum(one.throttled_periods for _, one in uses), sum(one.periods for _, one in uses)
        cores, memory = uses[0][1].cpu_limit, uses[0][1].memory_limit_mib
        cells.append(
            (
                lane,
                load,
                f"{cpu_s:.2f}",
                f"{cpu_s / seconds:.2f} of {cores:g}" if cores is not None else f"{cpu_s / seconds:.2f}",
                f"{max(use.memory_mib for use, _ in uses):.0f}" + (f" of {memory:.0f}" if memory is not None else ""),
                f"{stopped / periods:.0%} ({stopped} of {periods})" if periods else "-",
                f"{sum(one.throttled_s for _, one in uses):.2f}",
            )
        )
    columns = ("lane", "load", "CPU s", "cores", "memory MiB", "throttled periods", "throttled s")
    note = (
        "From the cgroup of each server's container, including warm-up and health checks. Throttled: stopped at the CPU limit; "
        "periods of 100 ms, and seconds summed over all threads."
    )
    return ReportTable("Containers", note, columns, cells)


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """The Theil-Sen estimator: the median of all pairs' slopes, robust against outliers (Sen, 1968)."""
    x, y = np.array(points, float).T
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def _of(result: Result, scenario: str) -> list[Run]:
    runs = [run for run in result.runs if run.load.scenario == scenario and not run.load.probe and not run.repeated]
    return sorted(runs, key=lambda run: (run.lane, run.round))
