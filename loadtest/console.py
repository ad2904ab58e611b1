"""The load test's part of the command line: what `trident bench`, `trident report` and `trident demo` share."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from loadtest.benchmark import loads, run_benchmark
from loadtest.errors import LoadtestError
from loadtest.recording import Recording
from loadtest.result import RESULTS, Result, latest_result, read_result, write_result
from loadtest.scenarios import Load
from loadtest.settings import BenchSettings
from loadtest.summary import headlines, milliseconds
from loadtest.targets import Target
from serving.bundle import Bundle
from serving.server_plan import Endpoint

console = Console()


@dataclass(frozen=True)
class Measurable:
    """Running servers that all serve `bundle`, with what is known about them. `generator_cores`: empty means any."""

    targets: tuple[Target, ...]
    bundle: Bundle
    serving: dict[str, Any] | None
    generator_cores: tuple[int, ...]

    @classmethod
    def of(
        cls, endpoints: Sequence[Endpoint], bundle: Bundle, settings: BaseModel | None, generator_cores: tuple[int, ...]
    ) -> Self:
        """One lane per endpoint. `settings` are the servers' (None if they are somebody else's)."""
        serving = settings.model_dump(mode="json") if settings is not None else None
        manifest = bundle.manifest
        targets = tuple(
            Target(
                endpoint=endpoint,
                model=manifest.model,
                version=manifest.version,
                runtime=serving["runtime"] if serving is not None else "unknown",
            )
            for endpoint in endpoints
        )
        return cls(targets, bundle, serving, generator_cores)


def bench_settings(**given: Any) -> BenchSettings:
    """The settings of one benchmark; None means not given.

    Raises:
        LoadtestError: a value is bad; the message names its flag.
    """
    try:
        return BenchSettings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(f"--{str(fault['loc'][0]).replace('_', '-')}: {fault['msg']}" for fault in error.errors())
        raise LoadtestError(faults) from error


def split_cores() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cores for the servers and one for the load generator, so that they do not disturb each other; on one core both
    share it.
    """
    cores = sorted(os.sched_getaffinity(0))
    return (tuple(cores[:-1]), (cores[-1],)) if len(cores) > 1 else ((), ())


def bench_run(measurable: Measurable, settings: BenchSettings) -> bool:
    """Measure, write result and report, and show both. True if every lane gave right answers."""
    targets, bundle = measurable.targets, measurable.bundle
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("parity gate", total=settings.rounds * len(loads(settings)) * len(targets))

        def on_run(target: Target, load: Load, round_: int, recording: Recording | None) -> None:
            what = f"{load.scenario} x {load.concurrency}"
            if recording is None:
                progress.update(bar, description=f"{target.lane}, {what}, round {round_ + 1}")
                return
            progress.advance(bar)
            rate = recording.answered / recording.seconds
            failed = f", {recording.failed} failed" if recording.failed else ""
            line = f"round {round_ + 1}  {what:<18} {target.lane:<11}{rate:8.1f} requests/s{failed}"
            progress.console.print(line, highlight=False)

        result = run_benchmark(targets, bundle, settings, measurable.serving, measurable.generator_cores, on_run)
    folder = RESULTS / f"{result.created:%Y%m%d-%H%M%S}-{bundle.manifest.model}"
    write_result(result, folder)
    path = _write_report(result, folder)
    _show_headlines(result)
    console.print(f"report: [bold]{path.resolve()}[/]", soft_wrap=True)
    return not any(lane.faults for lane in result.lanes)


def report_again(path: Path | None) -> None:
    """Write the report of the result at `path` (default: the newest) again.

    Raises:
        ResultError: there is none.
    """
    path = path or latest_result()
    console.print(str(_write_report(read_result(path), path if path.is_dir() else path.parent)))


def _write_report(result: Result, folder: Path) -> Path:
    """The report (matplotlib takes a moment to import, so not before it is needed)."""
    from loadtest.report import write_report

    return write_report(result, folder)


def _show_headlines(result: Result) -> None:
    """The table that ends a benchmark."""
    table = Table(
        title=f"{result.bundle}: latency of a lone request, and the most requests/s",
        title_justify="left",
        box=None,
        header_style="dim",
    )
    for column in ("server", "parity", "p50 ms", "p95 ms", "p99 ms", "requests/s", "errors"):
        table.add_column(column, justify="left" if column in ("server", "parity") else "right")
    for line in headlines(result):
        single = (line.single.p50_s, line.single.p95_s, line.single.p99_s) if line.single is not None else (None,) * 3
        peak = f"{line.peak.requests_per_s:.0f} (at {line.peak.concurrency})" if line.peak is not None else "-"
        parity = Text(line.parity, "bold red" if line.parity == "FAILED" else "green")
        table.add_row(line.lane, parity, *(milliseconds(value) for value in single), peak, str(line.errors))
    console.print(table)
    for fault in result.faults:
        console.print(Text(fault, "red"))
