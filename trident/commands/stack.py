"""Commands that run the servers: up, status, down."""

from typing import Annotated

import typer

from trident.options import ServersOption

commands = typer.Typer()


@commands.command(rich_help_panel="Servers")
def up(
    servers: ServersOption = "all",
    model: Annotated[
        list[str] | None, typer.Option(help="MODEL or MODEL:VERSION (repeatable); default: the newest bundle.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime, torchscript or openvino.  \\[default: onnxruntime]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Copies of the model per server; 0: one per core, at most 4; one on a GPU.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads per copy; 0: cores / workers.")] = None,
    max_batch_size: Annotated[int | None, typer.Option(help="Images per batch, at most.")] = None,
    queue_delay_ms: Annotated[float | None, typer.Option(help="How long a request may wait for a batch.")] = None,
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Take any free ports.")] = False,
) -> None:
    """Start the servers in the background. Returns when all of them give the golden answers.

    Every setting is also an environment variable (TRIDENT_QUEUE_SIZE=64) and a key in trident.toml. Workers, threads,
    batch size and delay have a default per server there; a value given here is for all servers.
    """
    from serving.settings import load_settings
    from serving.stack.endpoints import server_names
    from trident.console.stack import bring_up

    settings = load_settings(
        models=tuple(model) if model else None,
        runtime=runtime,
        workers=workers,
        threads=threads,
        max_batch_size=max_batch_size,
        queue_delay_ms=queue_delay_ms,
    )
    bring_up(settings, server_names(servers), free_ports=free_ports)


@commands.command(rich_help_panel="Servers")
def status(as_json: Annotated[bool, typer.Option("--json", help="The state as JSON.")] = False) -> None:
    """Show the servers, whether each gives a golden answer, and the settings that they run with.

    Exit code 1 if a server is not ready, answers wrongly, or runs with other settings.
    """
    from serving.settings import load_settings
    from trident.console.status import show_status

    raise typer.Exit(0 if show_status(load_settings(), as_json=as_json) else 1)


@commands.command(rich_help_panel="Servers")
def down(quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False) -> None:
    """Stop the servers. Returns when all their processes are gone."""
    from trident.console.stack import take_down

    take_down(quiet=quiet)
