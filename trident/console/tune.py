"""What `trident tune` does and shows."""

from datetime import UTC, datetime

from rich.progress import Progress
from rich.text import Text

from bundle.store import Bundle
from loadtest.analysis.summary import headlines
from loadtest.benchmark.result import RESULTS
from loadtest.settings import BenchSettings
from loadtest.tune import Changes, OpenLane, Screened, tune, write_tuned
from trident.console.bench import PROGRESS, write_report_to
from trident.console.output import console


def run_tune(open_lane: OpenLane, server: str, tried: list[Changes], bundle: Bundle, settings: BenchSettings) -> bool:
    """Search one server's settings, and write the best ones with the final benchmark. Returns False after wrong answers."""
    folder = RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-tune-{server}-{bundle.manifest.model}"
    console.print(f"{server}: {len(tried)} candidates, and the default")
    with Progress(*PROGRESS, console=console, transient=True) as progress:
        bar = progress.add_task("candidates", total=len(tried))

        def on_candidate(one: Screened) -> None:
            progress.console.print(f"  {one.text()}", highlight=False, soft_wrap=True, markup=False)
            progress.advance(bar)
            if progress.finished:
                progress.update(bar, description="final benchmark")

        found = tune(open_lane, tried, settings, folder, on_candidate)
    path = write_report_to(found.result, folder)
    write_tuned(found, folder / "tuned.toml")
    console.print(f"final benchmark, {settings.rounds} rounds, requests/s:")
    for line in headlines(found.result):
        rate = line.capacity.text() if line.capacity is not None and line.capacity.under_slo else "none"
        share = f", {line.of_ceiling.value:.0%} of the ceiling" if line.of_ceiling is not None else ""
        console.print(f"  {line.lane}: {rate}{share}", highlight=False, soft_wrap=True)
    for problem in found.result.problems:
        console.print(Text(problem, "red"))
    toml = found.toml()
    best = ", ".join(toml.splitlines()) if toml is not None else "no candidate is significantly better than the default"
    console.print(Text(f"{server}: {best}", "bold"))
    console.print(f"settings: [bold]{(folder / 'tuned.toml').resolve()}[/]", soft_wrap=True)
    console.print(f"report: [bold]{path.resolve()}[/]", soft_wrap=True)
    return found.result.sound
