"""Training's part of the command line: `trident train`, `export`, `import`, `bundles`. Imports torch only when one of
them runs.
"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from serving.bundle import BUNDLES, Bundle, list_bundles, read_bundle
from training.errors import CheckpointError, TrainingError

if TYPE_CHECKING:
    from training.trainer import EpochResult, RunResult

RUNS: Final = Path("artifacts/runs")
console = Console()


def train_run(given: dict[str, Any], run_dir: Path | None = None) -> "RunResult":
    """Train with the settings that were `given`, and show it.

    Raises:
        TrainingError: bad settings, or data, model or device are not there.
    """
    from pydantic import ValidationError

    from training.settings import TrainSettings

    try:
        settings = TrainSettings(**given)
    except ValidationError as error:
        faults = "; ".join(f"--{str(fault['loc'][0]).replace('_', '-')}: {fault['msg']}" for fault in error.errors())
        raise TrainingError(faults) from error
    with console.status("loading the data"):
        from training.datasets import load_dataset

        dataset = load_dataset(settings)
    sizes = ", ".join(f"{name} {len(split.labels)}" for name, split in dataset.splits.items())
    console.print(f"[bold]{settings.data}[/]: {len(dataset.labels)} classes; pictures: {sizes}")
    with console.status("loading PyTorch"):
        from training.trainer import Trainer
    folder = run_dir or RUNS / settings.name / f"{datetime.now():%Y%m%d-%H%M%S}"
    with _TrainingProgress() as progress:
        trainer = Trainer(settings, dataset, folder, progress)
        progress.begin(settings.epochs, len(trainer.batches), f"{settings.model} on {trainer.device}")
        result = trainer.fit()
    early = " (stopped early)" if result.stopped_early else ""
    console.print(
        f"[bold]test accuracy {result.test_accuracy:.2%}[/], validation {result.val_accuracy:.2%} "
        f"in epoch {result.best_epoch + 1} of {result.epochs}{early}; {result.seconds:.0f} s\n{result.checkpoint}"
    )
    return result


def export_run(
    checkpoint: Path, bundles: Path = BUNDLES, name: str | None = None, version: int | None = None
) -> Bundle:
    """Export, and show it."""
    with console.status("loading PyTorch"):
        from training.export import export_checkpoint
    with console.status("exporting"):
        bundle = export_checkpoint(checkpoint, bundles, name, version, say=console.print)
    _show_written(bundle)
    return bundle


def import_run(name: str, bundles: Path, version: int | None) -> Bundle:
    """Import published weights, and show it.

    Raises:
        TrainingError: no such weights, or they cannot be had.
    """
    with console.status("loading PyTorch"):
        from training.pretrained import import_model
    with console.status(f"importing {name}"):
        bundle = import_model(name, bundles, version, say=console.print)
    _show_written(bundle)
    return bundle


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

    def begin(self, epochs: int, steps: int, description: str) -> None:
        self._epochs = epochs
        self._bar = self.add_task(description, total=epochs * steps, loss="")

    def batch_done(self, epoch: int, loss: float) -> None:
        self.update(self._bar, advance=1, loss="" if loss != loss else f"loss {loss:.3f}")

    def epoch_done(self, result: "EpochResult", *, best: bool) -> None:
        self.console.print(
            f"epoch {result.epoch + 1:>3}/{self._epochs}  train loss {result.train_loss:.4f}  val loss {result.val_loss:.4f}  "
            f"val accuracy {result.val_accuracy:.2%}  {result.seconds:.1f} s{'  [green]best[/]' if best else ''}",
            highlight=False,
        )


def _show_written(bundle: Bundle) -> None:
    console.print(f"[bold]{bundle.name}[/] is in {bundle.path}")
