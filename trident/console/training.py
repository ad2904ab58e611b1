"""Training's part of the command line: `trident train`, `export`, `import`, `bundles`. Imports torch only when one of
them runs.
"""

from contextlib import AbstractContextManager, ExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bundle.store import BUNDLES, Bundle, list_bundles, read_bundle
from training.errors import CheckpointError, TrainingError

if TYPE_CHECKING:
    from training import trainer as training_run
    from training.datasets import Dataset
    from training.export import ExportOptions
    from training.settings import TrainSettings
    from training.trainer import EpochResult, RunResult, Trainer

RUNS: Final = Path("artifacts/runs")
console = Console()


def train_run(
    given: dict[str, Any],
    run_dir: Path | None = None,
    *,
    resume: bool = False,
    profile: int = 0,
    tune_loader: bool = False,
) -> "RunResult":
    """Train with the settings that were `given`, and show it.

    Raises:
        TrainingError: bad settings, or data, model or device are not there.
    """
    from training.run import new_run_dir, resumed_settings, unfinished_run

    settings = _settings(given)
    if resume:
        run_dir = run_dir or unfinished_run()
        settings = resumed_settings(run_dir, given, settings)
    with _loading("PyTorch"):
        from training.distributed import joined
        from training.run import run_training
    with joined(settings.device) as processes, ExitStack() as stack:
        console.quiet = not processes.leads
        stack.callback(setattr, console, "quiet", False)
        with _loading("the data"):
            from training.datasets import load_dataset

            dataset = load_dataset(settings)
        show_dataset(dataset)
        if tune_loader:
            settings = _tuned(settings, dataset)
        folder = Path(processes.agreed(str(run_dir or new_run_dir(settings.name))))
        progress = stack.enter_context(_TrainingProgress())
        watched: training_run.Progress = progress
        if profile and processes.leads:
            from training.profiling import Profiled

            watched = stack.enter_context(Profiled(progress, folder / "profile", profile, progress.console.print))
        try:
            result = run_training(
                settings,
                dataset,
                folder,
                watched,
                resume=resume,
                processes=processes,
                report=_report,
                on_start=progress.begin,
            )
        except KeyboardInterrupt:
            progress.stop()
            if (folder / "checkpoints").is_dir():
                console.print(f"stopped; go on with: trident train --resume --run-dir {folder}", soft_wrap=True)
            raise
    early = " (stopped early)" if result.stopped_early else ""
    if processes.leads:
        console.print(
            f"[bold]test accuracy {result.test_accuracy:.2%}[/], validation {result.val_accuracy:.2%} "
            f"in epoch {result.best_epoch + 1} of {result.epochs}{early}; {result.seconds:.0f} s\n"
            f"{result.checkpoint}\n{folder / 'report.html'}",
            soft_wrap=True,
        )
    return result


def _settings(given: dict[str, Any]) -> "TrainSettings":
    from pydantic import ValidationError

    from training.settings import chosen_settings

    try:
        return chosen_settings(given)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            flag = f"--{str(fault['loc'][0]).replace('_', '-')}: " if fault["loc"] else ""
            faults.append(flag + fault["msg"].removeprefix("Value error, "))
        raise TrainingError("; ".join(faults)) from error


def _loading(what: str) -> AbstractContextManager[Any]:
    return console.status(f"loading {what}")


def _report(folder: Path, settings: "TrainSettings", dataset: "Dataset", result: "RunResult") -> Path:
    from training.report.write import write_report

    return write_report(folder, settings, dataset, result)


def _tuned(settings: "TrainSettings", dataset: "Dataset") -> "TrainSettings":
    """The settings with the loader that was measured to be fastest."""
    from training.tune_loader import fastest, measure_loaders

    table = Table("loader workers", "prefetched batches", "images/s", box=None, header_style="dim")
    measured = []
    with console.status("measuring the loader"):
        for speed in measure_loaders(settings, dataset):
            measured.append(speed)
            table.add_row(str(speed.workers), str(speed.prefetch or "-"), f"{speed.images_per_s:.0f}")
    console.print(table)
    best = fastest(measured)
    console.print(f"--loader-workers {best.workers}" + (f" --prefetch {best.prefetch}" if best.workers else ""))
    return settings.model_copy(update={"loader_workers": best.workers, "prefetch": best.prefetch or settings.prefetch})


def show_dataset(dataset: "Dataset") -> None:
    """Sizes, balance of the classes, and the pixels' statistics; a warning where a class is rare."""
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
    rarest, commonest = int(train.argmin()), int(train.argmax())
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (dataset.mean, dataset.std))
    console.print(
        f"balance: {train.min()} ({dataset.labels[rarest]}) to {train.max()} ({dataset.labels[commonest]}) images per "
        f"class; pixels: mean {mean}, deviation {std}",
        highlight=False,
    )
    if train.min() * 10 < train.max():
        console.print(
            f"[yellow]{dataset.labels[rarest]} is rare: accuracy alone will hide it; look at the report's accuracy per class[/]"
        )


def sweep_run(grid: list[str], seeds: int, jobs: int, common: list[str], folder: Path | None) -> None:
    """Run a grid, and show the table and the plot's place.

    Raises:
        TrainingError: the grid is malformed, or a run failed.
    """
    from training.sweep import plot, run_trials, summarised, trials

    chosen = trials(grid, seeds)
    folder = folder or Path("artifacts/sweeps") / f"{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    bar = Progress(
        SpinnerColumn(), TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with bar, closing(run_trials(chosen, common, folder, jobs)) as ended:
        task = bar.add_task("runs", total=len(chosen))
        for trial, result in ended:
            results[trial] = result
            bar.update(task, advance=1)
            _say(f"{trial.name}, seed {trial.seed}: test accuracy {result['test_accuracy']:.2%}")
    outcomes = summarised(results, folder)
    plot(outcomes, folder / "sweep.svg")
    table = Table(
        "settings", "seeds", "test accuracy", "deviation", "lowest", "s per run", box=None, header_style="dim"
    )
    for outcome in outcomes:
        deviation = f"{100 * outcome.deviation:.2f}" if seeds > 1 else ""
        accuracy, lowest = f"{outcome.accuracy:.2%}", f"{min(outcome.accuracies):.2%}"
        table.add_row(outcome.name, str(seeds), accuracy, deviation, lowest, f"{outcome.seconds:.0f}")
    console.print(table)
    _say(f"{folder / 'sweep.json'} {folder / 'sweep.svg'}")


def export_run(
    checkpoint: Path,
    bundles: Path = BUNDLES,
    name: str | None = None,
    version: int | None = None,
    wanted: "ExportOptions | None" = None,
) -> Bundle:
    """Export, and show it."""
    with _loading("PyTorch"):
        from training.export import export_checkpoint
    with console.status("exporting"):
        bundle = export_checkpoint(checkpoint, bundles, name, version, _say, wanted)
    _show_written(bundle)
    return bundle


def import_run(name: str, bundles: Path, version: int | None, wanted: "ExportOptions | None" = None) -> Bundle:
    """Import published weights, and show it.

    Raises:
        TrainingError: no such weights, or they cannot be had.
    """
    with _loading("PyTorch"):
        from training.pretrained import import_model
    with console.status(f"importing {name}"):
        bundle = import_model(name, bundles, version, _say, wanted)
    _show_written(bundle)
    return bundle


def export_options(precisions: str, edge: bool, max_accuracy_drop: float) -> "ExportOptions":
    """What `--precisions`, `--edge` and `--max-accuracy-drop` ask for.

    Raises:
        TrainingError: there is no such precision.
    """
    from typing import get_args

    from bundle.manifest import Precision
    from training.export import ExportOptions

    names = {name.strip() for name in precisions.split(",")} - {"", "fp32"}
    known: tuple[Precision, ...] = get_args(Precision)
    if "all" in names:
        names = set(known)
    if not names <= set(known):
        raise TrainingError(
            f"no precision {', '.join(sorted(names - set(known)))}; there are {', '.join(known)}, or all"
        )
    return ExportOptions(tuple(name for name in known if name in names), edge, max_accuracy_drop)


def show_bundles(bundles: Path) -> None:
    """A table of the bundles."""
    table = Table("bundle", "classes", "input", "files", "origin", "test accuracy", box=None, header_style="dim")
    for model, version in list_bundles(bundles):
        manifest = read_bundle(bundles / model / str(version), check=False).manifest
        spec, origin = manifest.input, manifest.origin
        files = ", ".join(f"{artefact.file} ({artefact.bytes / 2**20:.1f} MiB)" for artefact in manifest.artefacts)
        accuracy = "" if origin.test_accuracy is None else f"{origin.test_accuracy:.2%}"
        size = f"{spec.height}x{spec.width} {spec.resize}"
        table.add_row(
            f"{model}:{version}",
            str(len(manifest.labels)),
            size,
            files,
            f"{origin.architecture}, {origin.dataset}",
            accuracy,
        )
    if table.row_count:
        console.print(table)
    else:
        console.print(
            f"no bundles below {bundles}; `trident train` and `trident export`, or `trident import`, make one"
        )


def newest_checkpoint(name: str | None = None, root: Path = RUNS) -> Path:
    """The best.pt that was written last, of the runs called `name` or of all.

    Raises:
        CheckpointError: there is none.
    """
    folder = root / name if name is not None else root
    found = sorted(folder.rglob("best.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"no checkpoint below {folder}; `trident train` makes one")
    return found[-1]


class _TrainingProgress(Progress):
    """A bar per run; a line per epoch."""

    def __init__(self) -> None:
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            transient=True,
        )

    def begin(self, trainer: "Trainer") -> None:
        """Show the bar, from the step at which the run goes on."""
        settings, steps = trainer.settings, trainer.batches.steps
        self._epochs = settings.epochs
        of_several = f", {trainer.processes.count} processes" if trainer.processes.count > 1 else ""
        description = f"{settings.model} on {trainer.device}{of_several}"
        self._bar = self.add_task(description, total=self._epochs * steps, completed=trainer.step, loss="")
        if trainer.step:
            self.console.print(f"resumed {trainer.run_dir} after step {trainer.step} of {self._epochs * steps}")

    def batch_done(self, epoch: int, loss: float) -> None:
        self.update(self._bar, advance=1, loss="" if loss != loss else f"loss {loss:.3f}")

    def epoch_done(self, result: "EpochResult", *, best: bool) -> None:
        self.console.print(
            f"epoch {result.epoch + 1:>3}/{self._epochs}  train loss {result.train_loss:.4f}  val loss {result.val_loss:.4f}  "
            f"val accuracy {result.val_accuracy:.2%}  {result.seconds:.1f} s{'  [green]best[/]' if best else ''}",
            highlight=False,
        )


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _show_written(bundle: Bundle) -> None:
    table = Table("file", "MiB", "ms per image", "speed-up", "accuracy drop", box=None, header_style="dim")
    for artefact in bundle.manifest.artefacts:
        drop = "" if artefact.accuracy_drop is None else f"{artefact.accuracy_drop:.2%}"
        size, latency = f"{artefact.bytes / 2**20:.2f}", f"{artefact.latency_ms:.2f}"
        table.add_row(artefact.file, size, latency, f"{artefact.speedup:.2f}", drop)
    console.print(table)
    console.print(f"[bold]{bundle.name}[/] is in {bundle.path}", soft_wrap=True)
