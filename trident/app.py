"""The `trident` command, put together."""

import signal
import sys
from typing import NoReturn

import typer
from rich.console import Console

from bundle.errors import TridentError
from trident.commands import bench, demo, export, precisions, requests, rollout, stack, train, tune

HELP = """Train an image classifier once, serve it three ways, prove that the answers agree, and measure them honestly.

[bold]train[/] -> [bold]export[/] -> [bold]up[/] -> [bold]verify[/] -> [bold]bench[/] -> [bold]report[/];
or all of it at once: [bold]demo[/]."""

app = typer.Typer(
    help=HELP, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False
)
for part in (train, export, stack, rollout, requests, bench, tune, precisions, demo):
    app.add_typer(part.commands)


def main() -> NoReturn:
    """The `trident` command. Our own errors become one red line; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(app())
    except TridentError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
