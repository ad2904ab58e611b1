"""The command that compares the runtimes and precisions of a bundle: precisions."""

from typing import Annotated

import typer

from trident.options import ModelOption

commands = typer.Typer()


@commands.command(rich_help_panel="Measurement")
def precisions(
    model: ModelOption = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the model, each on a core of its own.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each runtime and precision.")] = 20,
) -> None:
    """Compare the runtimes and precisions of a bundle on this machine, without a server: ms per image and agreement.

    Take it on a quiet machine. The bundle needs the lower precisions: `trident export --precisions all`.
    """
    from bundle.store import find_bundle
    from serving.settings import load_settings
    from trident.console.precisions import show_precisions

    show_precisions(find_bundle(model, load_settings().bundles), threads, rounds)
