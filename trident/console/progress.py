"""Progress display of a training run. Imports nothing heavy."""

from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from trident.console.output import console

if TYPE_CHECKING:
    from training.progress import EpochResult
    from training.trainer import Trainer


class TrainingProgress(Progress):
    """One bar for the run, and one line per epoch."""

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
        """Show the bar, starting at the step from which the run continues."""
        settings = trainer.settings
        self._epochs = settings.epochs
        total = settings.epochs * trainer.batches.steps
        processes = f", {trainer.processes.count} processes" if trainer.processes.count > 1 else ""
        description = f"{settings.model} on {trainer.device}{processes}"
        self._bar = self.add_task(description, total=total, completed=trainer.step, loss="")
        if trainer.step:
            self.console.print(f"resumed {trainer.run_dir} after step {trainer.step} of {total}", soft_wrap=True)

    def batch_done(self, epoch: int, loss: float | None) -> None:
        """Advance the bar by one step."""
        self.update(self._bar, advance=1, loss="" if loss is None else f"loss {loss:.3f}")

    def epoch_done(self, result: "EpochResult", *, best: bool) -> None:
        """Write one line for the epoch."""
        self.console.print(
            f"epoch {result.epoch + 1:>3}/{self._epochs}  train loss {result.train_loss:.4f}  "
            f"val loss {result.val_loss:.4f}  val accuracy {result.val_accuracy:.2%}  {result.seconds:.1f} s"
            f"{'  [green]best[/]' if best else ''}",
            highlight=False,
        )
