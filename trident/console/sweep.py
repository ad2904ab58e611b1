"""Output of `trident sweep`."""

from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from training.errors import TrainingError
from trident.console.output import console, log
from trident.flags import describe_errors

if TYPE_CHECKING:
    from training.sweep import Outcome, Trial


def sweep_run(grid: list[str], given: dict[str, Any], seeds: int, jobs: int, folder: Path | None) -> None:
    """Run a sweep; show a table of the outcomes and where its files are.

    Raises:
        TrainingError: a setting is invalid, or a run failed.
    """
    from training.sweep import plot_losses, summarise

    trials = _trials(grid, given, seeds)
    folder = folder or Path("artifacts/sweeps") / f"{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = summarise(_run_with_progress(trials, folder, jobs), folder)
    plot_losses(outcomes, folder / "sweep.svg")
    console.print(_table(outcomes))
    log(f"{folder / 'sweep.json'} {folder / 'sweep.svg'}")


def _trials(grid: list[str], given: dict[str, Any], seeds: int) -> "list[Trial]":
    from pydantic import ValidationError

    from training.sweep import build_trials

    try:
        return build_trials(grid, given, seeds)
    except ValidationError as error:
        raise TrainingError(describe_errors(error)) from error


def _run_with_progress(trials: "list[Trial]", folder: Path, jobs: int) -> "dict[Trial, dict[str, Any]]":
    from training.sweep import run_trials

    results = {}
    bar = Progress(
        SpinnerColumn(), TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with bar, closing(run_trials(trials, folder, jobs)) as finished:
        task = bar.add_task("runs", total=len(trials))
        for trial, result in finished:
            results[trial] = result
            bar.update(task, advance=1)
            log(f"{trial.name}, seed {trial.seed}: test accuracy {result['test_accuracy']:.2%}")
    return results


def _table(outcomes: "list[Outcome]") -> Table:
    table = Table(
        "settings", "seeds", "test accuracy", "deviation", "lowest", "s per run", box=None, header_style="dim"
    )
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            str(len(outcome.accuracies)),
            f"{outcome.accuracy:.2%}",
            "-" if outcome.deviation is None else f"{100 * outcome.deviation:.2f}",
            f"{min(outcome.accuracies):.2%}",
            f"{outcome.seconds:.0f}",
        )
    return table
