"""Commands that train: train, sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trident.flags import settings_command

if TYPE_CHECKING:
    from training.settings import TrainSettings

commands = typer.Typer()


def _settings_model() -> "type[TrainSettings]":
    from training.settings import TrainSettings

    return TrainSettings


def _recipes() -> dict[str, dict[str, Any]]:
    from training.settings import RECIPES

    return {str(data): recipe for data, recipe in RECIPES.items()}


@commands.command(rich_help_panel="Model", cls=settings_command(_settings_model, _recipes))
def train(
    context: typer.Context,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; default: artifacts/runs/<name>/<time>.", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --run-dir, or the last unfinished run.")
    ] = False,
    profile: Annotated[
        int, typer.Option(help="Profile this many steps: write a trace and show the time per phase.")
    ] = 0,
    tune_loader: Annotated[
        bool, typer.Option("--tune-loader", help="Measure loader settings and use the fastest.")
    ] = False,
) -> None:
    """Train a classifier and keep its best checkpoint.

    Some defaults depend on the data set: `20; cifar10: 10` means 10 for cifar10, else 20.

    [dim]trident train[/]                                       handwritten digits
    [dim]trident train --data my_images[/]                    one folder per label
    [dim]trident train --resume[/]                              after a crash or Ctrl-C
    [dim]torchrun --nproc-per-node 2 -m trident train ...[/]    several processes
    """
    from trident.console.training import train_run

    train_run(context.obj, run_dir, resume=resume, profile=profile, tune_loader=tune_loader)


@commands.command(rich_help_panel="Model", cls=settings_command(_settings_model, hidden=True))
def sweep(
    context: typer.Context,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="FLAG=VALUE,VALUE", help="A flag of `trident train` and its values (repeatable)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs per combination, with seeds 0, 1, ...")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Number of parallel runs; they share the cores.")] = 2,
    sweep_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the sweep; finished runs in it are kept. Default: artifacts/sweeps/<time>.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train with every combination of some settings and compare the results.

    The flags of `trident train` that set a training setting apply to every run.

    [dim]trident sweep --grid optimizer=adam,adamw --grid schedule=cosine,onecycle --seeds 3 --epochs 10[/]
    [dim]trident sweep --seeds 5[/]     spread of the default settings
    """
    from trident.console.sweep import sweep_run

    sweep_run(grid or [], context.obj, seeds, jobs, sweep_dir)
