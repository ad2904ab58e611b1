"""The load test's part of the command line: what `trident bench`, `report`, `compare`, `tune` and `demo` do and show."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bundle.store import Bundle
from loadtest.benchmark import Lineup, run_benchmark
from loadtest.load import Load
from loadtest.result import RESULTS, Result, Run, latest_result, read_result, write_result
from loadtest.settings import BenchSettings
from loadtest.summary import Headline, headlines, milliseconds
from loadtest.targets import Target

if TYPE_CHECKING:
    from loadtest.tune import Changes, OpenLane

console = Console()
_PROGRESS = (
    SpinnerColumn(),
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
)


def bench_run(measured: Lineup, settings: BenchSettings, out: Path | None = None) -> Result:
    """Measure, write result and report, and show both.

    Args:
        out: the folder of the result; default: a new one below artifacts/results.
    """
    bundle = measured.bundle.manifest.model if measured.bundle is not None else "targets"
    folder = out or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{bundle}"
    with Progress(*_PROGRESS, console=console, transient=True) as progress:
        bar = progress.add_task("parity gate, calibration", total=settings.estimate * len(measured.targets))

        def on_run(target: Target, load: Load, round_: int, run: Run | None) -> None:
            if run is None:
                progress.update(bar, description=f"{target.lane}, {load.label}, round {round_ + 1}")
                return
            progress.advance(bar)
            progress.console.print(_run_line(run), highlight=False, soft_wrap=True)

        result = run_benchmark(measured, settings, folder, on_run)
    write_result(result, folder)
    path = _write_report(result, folder)
    show_headlines(result)
    console.print(f"report: [bold]{path.resolve()}[/]", soft_wrap=True)
    return result


def report_again(path: Path | None) -> None:
    """Write the report of the result at `path` (default: the newest) again.

    Raises:
        ResultError: there is none.
    """
    path = path or latest_result()
    console.print(str(_write_report(read_result(path), path if path.is_dir() else path.parent)))


def compare_results(before: Path, after: Path, tolerance: float, out: Path | None) -> bool:
    """Show and write what changed from one result to another. True if no lane became slower.

    Raises:
        ResultError: they cannot be compared.
    """
    from loadtest.compare import compare
    from loadtest.report.comparison import comparison_verdict, write_comparison

    results = read_result(before), read_result(after)
    comparison = compare(*results, tolerance)
    table = Table("lane", "load", "metric", box=None, header_style="dim")
    for column in ("A", "B", "B / A", "interval", ""):
        table.add_column(column, justify="right")
    for one in comparison.differences:
        color = {"slower": "red", "faster": "green", "same": ""}[one.change]
        unit = "" if one.metric == "requests/s" else " ms"
        cells = (f"{one.before:.4g}", f"{one.after:.4g}", f"{one.ratio:.3f}", f"{one.low:.3f} to {one.high:.3f}")
        table.add_row(one.lane, one.load.label, f"{one.metric}{unit}", *cells, Text(one.change, color))
    console.print(table)
    for runtime, factor in comparison.machine.items():
        console.print(f"the machine itself ran {runtime} {factor:.3f} times as fast in B; that is taken out")
    folder = after if after.is_dir() else after.parent
    path = write_comparison(comparison, *results, out or folder / "comparison.html")
    console.print(Text(comparison_verdict(comparison), "bold" if comparison.passed else "bold red"))
    console.print(f"report: [bold]{path.resolve()}[/]", soft_wrap=True)
    return comparison.passed


def tune_run(
    open_lane: "OpenLane", server: str, tried: "list[Changes]", bundle: Bundle, settings: BenchSettings
) -> bool:
    """Search one server's settings, and write the best ones with the evidence. False if it gave wrong answers."""
    from loadtest.tune import Screened, tune, write_tuned

    folder = RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-tune-{server}-{bundle.manifest.model}"
    console.print(f"{server}: {len(tried)} candidates besides the default")
    with Progress(*_PROGRESS, console=console, transient=True) as progress:
        bar = progress.add_task("candidates", total=len(tried))

        def on_candidate(one: Screened) -> None:
            progress.console.print(f"  {one.text()}", highlight=False, soft_wrap=True, markup=False)
            progress.advance(bar)
            if progress.finished:
                progress.update(bar, description="the best beside the default")

        found = tune(open_lane, tried, settings, folder, on_candidate)
    path = _write_report(found.result, folder)
    write_tuned(found, folder / "tuned.toml")
    console.print(f"in {settings.rounds} rounds side by side, requests/s:")
    for line in headlines(found.result):
        rate = line.capacity.text() if line.capacity is not None and line.capacity.under_slo else "none"
        share = f", {line.of_ceiling.value:.0%} of the ceiling" if line.of_ceiling is not None else ""
        console.print(f"  {line.lane}: {rate}{share}", highlight=False, soft_wrap=True)
    for fault in found.result.faults:
        console.print(Text(fault, "red"))
    said = ", ".join(found.toml().splitlines()) or "nothing is better than the default beyond the noise"
    console.print(Text(f"{server}: {said}", "bold"))
    console.print(f"settings: [bold]{(folder / 'tuned.toml').resolve()}[/]", soft_wrap=True)
    console.print(f"report: [bold]{path.resolve()}[/]", soft_wrap=True)
    return found.result.sound


def show_headlines(result: Result) -> None:
    """The table that ends a benchmark."""
    lines = headlines(result)
    slo = next((line.capacity for line in lines if line.capacity is not None and line.capacity.under_slo), None)
    title = f"{result.bundle}: latency of a lone request, and the most requests/s"
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    columns = ["server", "parity", "p50 ms", "p95 ms", "p99 ms", "requests/s", "errors"]
    columns[6:6] = [f"requests/s, {slo.condition}"] if slo is not None else []
    for column in columns:
        table.add_column(column, justify="left" if column in ("server", "parity") else "right")
    for line in lines:
        cells = _cells(line, slo is not None)
        parity = Text(line.parity, "bold red" if line.parity == "FAILED" else "green")
        table.add_row(line.lane, parity, *cells, str(line.errors))
    console.print(table)
    for fault in result.faults:
        console.print(Text(fault, "red"))


def _cells(line: Headline, with_slo: bool) -> list[str]:
    single = line.single
    times = (single.p50_s, single.p95_s, single.p99_s) if single is not None else None
    cells = [milliseconds(value) for value in times] if times is not None else ["-"] * 3
    concurrency = getattr(line.peak.load.loop, "concurrency", None) if line.peak is not None else None
    cells.append(f"{line.peak.requests_per_s.value:.0f} (at {concurrency})" if line.peak is not None else "-")
    if with_slo:
        capacity = line.capacity if line.capacity is not None and line.capacity.under_slo else None
        bound = ">= " if capacity is not None and capacity.at_least else ""
        cells.append(f"{bound}{capacity.requests_per_s.value:.0f}" if capacity is not None else "-")
    return cells


def _run_line(run: Run) -> Text:
    recording = run.recording
    p99 = recording.percentile_ms(99)
    line = Text(f"round {run.round + 1}  {run.load.label:<28} {run.lane:<18}{recording.requests_per_s:8.1f} requests/s")
    line.append(f"  p99 {p99:7.2f} ms" if recording.answered else "")
    if recording.failed:
        line.append(f"  {recording.failed} failed", "red")
    if run.fault:
        line.append(f"  {'repeated' if run.repeated else 'INVALID'}: {run.fault}", "yellow" if run.repeated else "red")
    return line


def _write_report(result: Result, folder: Path) -> Path:
    """The report (matplotlib takes a moment to import, so not before it is needed)."""
    from loadtest.report import write_report

    return write_report(result, folder)
