"""Output of `trident train`. Imports torch only when a run starts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from training.errors import TrainingError
from trident.console.output import console, loading
from trident.console.progress import TrainingProgress
from trident.flags import describe_errors

if TYPE_CHECKING:
    from training.datasets import Dataset
    from training.distributed import Processes
    from training.progress import Progress, RunResult
    from training.settings import TrainSettings


def train_run(
    given: dict[str, Any],
    run_dir: Path | None = None,
    *,
    resume: bool = False,
    profile: int = 0,
    tune_loader: bool = False,
) -> "RunResult":
    """Train with the given settings, and show progress and result.

    Args:
        given: settings that replace the defaults, by name.
        run_dir: folder of the run; None: a new one, or with `resume` the last unfinished run.
        resume: continue the run in `run_dir`.
        profile: number of steps to profile.
        tune_loader: measure the data loader, and use its fastest settings.

    Raises:
        TrainingError: a setting is invalid, or the data, the model or the device is not available.
    """
    settings = _resolve(given)
    with loading("PyTorch"):
        from training.distributed import process_group
        from training.run import resumed_settings
        from training.run_folder import new_run_dir, unfinished_run
    if resume:
        run_dir = run_dir or unfinished_run()
        settings = resumed_settings(run_dir, given, settings)
    with process_group(settings.device) as processes, _quiet_unless(processes.is_leader):
        with loading("the data"):
            from training.datasets import load_dataset

            dataset = load_dataset(settings)
        show_dataset(dataset)
        if tune_loader:
            settings = _tune_loader(settings, dataset)
        folder = Path(processes.from_leader(str(run_dir or new_run_dir(settings.name))))
        result = _run(settings, dataset, folder, processes, resume=resume, profile=profile)
        _show_result(result, folder)
    return result


def _resolve(given: dict[str, Any]) -> "TrainSettings":
    from pydantic import ValidationError

    from training.settings import resolve_settings

    try:
        return resolve_settings(given)
    except ValidationError as error:
        raise TrainingError(describe_errors(error)) from error


@contextmanager
def _quiet_unless(speaks: bool) -> Iterator[None]:
    """Suppress all output of processes other than the leader."""
    console.quiet = not speaks
    try:
        yield
    finally:
        console.quiet = False


def _run(
    settings: "TrainSettings",
    dataset: "Dataset",
    folder: Path,
    processes: "Processes",
    *,
    resume: bool,
    profile: int,
) -> "RunResult":
    from training.run import run_training

    with ExitStack() as stack:
        bar = stack.enter_context(TrainingProgress())
        progress: Progress = bar
        if profile and processes.is_leader:
            from training.profiling import ProfiledProgress

            progress = stack.enter_context(ProfiledProgress(bar, folder / "profile", profile, console.print))
        try:
            return run_training(
                settings,
                dataset,
                folder,
                progress,
                resume=resume,
                processes=processes,
                write_report=_write_report,
                on_start=bar.begin,
            )
        except KeyboardInterrupt:
            bar.stop()
            if (folder / "checkpoints").is_dir():
                console.print(f"stopped; continue with: trident train --resume --run-dir {folder}", soft_wrap=True)
            raise


def _write_report(folder: Path, settings: "TrainSettings", dataset: "Dataset", result: "RunResult") -> Path:
    from training.report.write import write_report

    return write_report(folder, settings, dataset, result)


def _show_result(result: "RunResult", folder: Path) -> None:
    early = " (stopped early)" if result.stopped_early else ""
    console.print(
        f"[bold]test accuracy {result.test_accuracy:.2%}[/], validation {result.val_accuracy:.2%} "
        f"in epoch {result.best_epoch + 1} of {result.epochs}{early}; {result.seconds:.0f} s\n"
        f"{result.checkpoint}\n{folder / 'report.html'}",
        soft_wrap=True,
    )


def _tune_loader(settings: "TrainSettings", dataset: "Dataset") -> "TrainSettings":
    """Measure the data loader, show the results, and return the settings with the fastest candidate."""
    from training.tune_loader import fastest, measure_loaders

    table = Table("loader workers", "prefetched batches", "images/s", box=None, header_style="dim")
    measured = []
    with console.status("measuring the data loader"):
        for speed in measure_loaders(settings, dataset):
            measured.append(speed)
            table.add_row(str(speed.workers), str(speed.prefetch or "-"), f"{speed.images_per_s:.0f}")
    console.print(table)
    best = fastest(measured)
    console.print(f"using --loader-workers {best.workers}" + (f" --prefetch {best.prefetch}" if best.prefetch else ""))
    return settings.model_copy(update={"loader_workers": best.workers, "prefetch": best.prefetch or settings.prefetch})


def show_dataset(dataset: "Dataset") -> None:
    """Show the sizes of the splits, the balance of the classes, and statistics of the pixels.

    Warns if the largest class has more than ten times as many images as the smallest.
    """
    import numpy as np

    counts = {name: np.bincount(split.labels, minlength=len(dataset.labels)) for name, split in dataset.splits.items()}
    sizes = ", ".join(f"{name} {count.sum()}" for name, count in counts.items())
    console.print(f"[bold]{dataset.name}[/]: {len(dataset.labels)} classes; images: {sizes}", highlight=False)
    if len(dataset.labels) <= 20:
        table = Table("images of", *dataset.labels, box=None, header_style="dim")
        for name, count in counts.items():
            table.add_row(name, *map(str, count))
        console.print(table)
    train = counts["train"]
    smallest, largest = dataset.labels[int(train.argmin())], dataset.labels[int(train.argmax())]
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (dataset.mean, dataset.std))
    balance = (
        f"{train.min()} ({smallest}) to {train.max()} ({largest})" if train.min() < train.max() else f"{train.min()}"
    )
    console.print(
        f"{balance} training images per class; normalised with mean {mean}, standard deviation {std}",
        highlight=False,
    )
    if train.min() * 10 < train.max():
        console.print(
            f"[yellow]class {smallest} is rare: check the accuracy per class in the report, not only the total[/]"
        )
