"""What `trident bench`, `report` and `compare` do and show."""

from datetime import UTC, datetime
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from loadtest.analysis.summary import Headline, headlines, milliseconds
from loadtest.benchmark.result import RESULTS, Result, Run, latest_result, read_result, write_result
from loadtest.benchmark.rounds import run_benchmark
from loadtest.lanes.lane import Lane
from loadtest.lanes.lineup import Lineup
from loadtest.load import Load
from loadtest.settings import BenchSettings
from trident.console.output import console

PROGRESS = (
    SpinnerColumn(),
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
)


def run_bench(lineup: Lineup, settings: BenchSettings, out: Path | None = None) -> Result:
    """Measure, write the result and its report, and show the headlines.

    Args:
        out: folder of the result; default: a new one below artifacts/results.
    """
    bundle = lineup.bundle.manifest.model if lineup.bundle is not None else "targets"
    folder = out or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{bundle}"
    with Progress(*PROGRESS, console=console, transient=True) as progress:
        bar = progress.add_task("parity gate, calibration", total=settings.estimate * len(lineup.lanes))

        def on_run(lane: Lane, load: Load, round_: int, run: Run | None) -> None:
            if run is None:
                progress.update(bar, description=f"{lane.name}, {load.label}, round {round_ + 1}")
                return
            progress.advance(bar)
            progress.console.print(_run_line(run), highlight=False, soft_wrap=True)

        result = run_benchmark(lineup, settings, folder, on_run)
    write_result(result, folder)
    path = write_report_to(result, folder)
    show_headlines(result)
    console.print(f"report: [bold]{path.resolve()}[/]", soft_wrap=True)
    return result


def write_report_of(path: Path | None) -> None:
    """Write the report of the result at `path` (default: the newest).

    Raises:
        ResultError: there is none.
    """
    path = path or latest_result()
    console.print(str(write_report_to(read_result(path), path if path.is_dir() else path.parent)))


def compare_results(before: Path, after: Path, tolerance: float, out: Path | None) -> bool:
    """Show and write the differences between two results. Returns whether B passed: no lane is slower or missing.

    Raises:
        ResultError: they cannot be compared.
    """
    from loadtest.analysis.compare import compare
    from loadtest.report.comparison import comparison_verdict, write_comparison

    results = read_result(before), read_result(after)
    comparison = compare(*results, tolerance)
    table = Table("lane", "load", "metric", box=None, header_style="dim")
    for column in ("A", "B", "B / A", "interval", ""):
        table.add_column(column, justify="right")
    for one in comparison.differences:
        color = {"slower": "red", "faster": "green", "tie": ""}[one.change]
        unit = "" if one.metric == "requests/s" else " ms"
        cells = (f"{one.before:.4g}", f"{one.after:.4g}", f"{one.ratio:.3f}", f"{one.low:.3f} to {one.high:.3f}")
        table.add_row(one.lane, one.load.label, f"{one.metric}{unit}", *cells, Text(one.change, color))
    console.print(table)
    for runtime, factor in comparison.machine.items():
        console.print(
            f"the ceiling of {runtime} was {factor:.3f} times as high in B; the ratios are corrected for that"
        )
    folder = after if after.is_dir() else after.parent
    path = write_comparison(comparison, *results, out or folder / "comparison.html")
    console.print(Text(comparison_verdict(comparison), "bold" if comparison.passed else "bold red"))
    console.print(f"report: [bold]{path.resolve()}[/]", soft_wrap=True)
    return comparison.passed


def show_headlines(result: Result) -> None:
    """Print the table at the end of a benchmark."""
    lines = headlines(result)
    slo = next((line.capacity for line in lines if line.capacity is not None and line.capacity.under_slo), None)
    title = f"{result.bundle}: latency at concurrency 1, highest requests/s"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    columns = ["lane", "parity", "p50 ms", "p95 ms", "p99 ms", "requests/s", "errors"]
    columns[6:6] = [f"requests/s, {slo.condition}"] if slo is not None else []
    for column in columns:
        table.add_column(column, justify="left" if column in ("lane", "parity") else "right")
    for line in lines:
        cells = _cells(line, slo is not None)
        parity = Text(line.parity, "bold red" if line.parity == "FAILED" else "green")
        table.add_row(line.lane, parity, *cells, str(line.errors))
    console.print(table)
    for problem in result.problems:
        console.print(Text(problem, "red"))


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
    if run.invalid_reason is not None:
        word, color = ("repeated", "yellow") if run.repeated else ("INVALID", "red")
        line.append(f"  {word}: {run.invalid_reason}", color)
    return line


def write_report_to(result: Result, folder: Path) -> Path:
    """Write the report. Imported here because matplotlib is slow to import."""
    from loadtest.report import write_report

    return write_report(result, folder)
