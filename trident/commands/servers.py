"""Commands for the servers: up, status, down, deploy, rollback, predict, verify, drill."""

from pathlib import Path
from typing import Annotated

import typer

from trident.options import SERVERS_HELP, LiveOption, ModelOption, ServersOption, UrlOption

commands = typer.Typer()


@commands.command(rich_help_panel="Servers")
def up(
    servers: ServersOption = "all",
    model: Annotated[
        list[str] | None, typer.Option(help="MODEL or MODEL:VERSION (repeatable); default: the newest bundle.")
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="onnxruntime or torchscript.  [default: onnxruntime]")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Copies of the model per server; 0: one per core, 4 at most, and one on a GPU.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads per copy; 0: cores / workers.")] = None,
    max_batch_size: Annotated[int | None, typer.Option(help="Images per batch, at most.")] = None,
    queue_delay_ms: Annotated[float | None, typer.Option(help="How long a request may wait for others.")] = None,
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Take any free ports.")] = False,
) -> None:
    """Start the servers in the background; return when all of them give right answers.

    Every setting is also an environment variable (TRIDENT_QUEUE_SIZE=64) and a key in trident.toml. For workers,
    threads, batches and delay each server has its own default there; a value given here is for all of them.
    """
    from serving.settings import load_settings
    from serving.stack.endpoints import server_names
    from trident.console.servers import bring_up

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
    """Show the servers, and whether each answers a real image rightly; exit code 1 if one does not."""
    from trident.console.status import show_status

    raise typer.Exit(0 if show_status(as_json=as_json) else 1)


@commands.command(rich_help_panel="Servers")
def down(quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing.")] = False) -> None:
    """Stop the servers; return when every process of theirs is gone."""
    from trident.console.servers import take_down

    take_down(quiet=quiet)


@commands.command(rich_help_panel="Servers")
def deploy(
    bundle: Annotated[str, typer.Argument(help="MODEL:VERSION, or MODEL for its highest version.")],
    live: LiveOption = False,
) -> None:
    """Put another version of a model on all running servers, without losing a request.

    Loaded beside the old version, asked for every golden answer, then switched to; the old one answers what it took and
    is unloaded. If an answer is wrong, nothing is switched, and the exit code is 1.
    """
    from bundle.store import find_bundle
    from serving.settings import load_settings
    from trident.console.servers import deploy_bundle

    raise typer.Exit(0 if deploy_bundle(find_bundle(bundle, load_settings().bundles), live=live) else 1)


@commands.command(rich_help_panel="Servers")
def rollback(
    live: LiveOption = False,
) -> None:
    """Deploy what the last deployment replaced."""
    from serving.stack.endpoints import previous_bundle
    from trident.console.servers import deploy_bundle

    raise typer.Exit(0 if deploy_bundle(previous_bundle(), live=live) else 1)


@commands.command(rich_help_panel="Servers")
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.", exists=True, dir_okay=False)],
    server: Annotated[str, typer.Option(help=SERVERS_HELP)] = "all",
    model: ModelOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 3,
    protocol: Annotated[str, typer.Option(help="http, or grpc (TorchServe and Triton).")] = "http",
    url: UrlOption = None,
) -> None:
    """Ask the running servers what is in an image."""
    from serving.stack.endpoints import find_endpoints, parse_protocol, speaking
    from trident.console.servers import predict_images

    spoken = parse_protocol(protocol)
    endpoints, bundle = find_endpoints(server, url, model)
    raise typer.Exit(0 if predict_images(images, speaking(spoken, endpoints), bundle, top_k, spoken) else 1)


@commands.command(rich_help_panel="Servers")
def verify(servers: ServersOption = "all", model: ModelOption = None, url: UrlOption = None) -> None:
    """Prove that the servers agree: golden answers, odd images, errors, health, metrics, versions, over every protocol.

    A table with a row per check and a column per server and protocol; exit code 1 if anything failed.
    """
    from serving.stack.endpoints import find_endpoints, is_default_version, settings_in_force
    from trident.console.servers import verify_servers

    endpoints, bundle = find_endpoints(servers, url, model)
    settings = settings_in_force(given=bool(url))
    is_default = bool(url) or is_default_version(bundle)
    raise typer.Exit(0 if verify_servers(endpoints, bundle, settings, is_default=is_default) else 1)


@commands.command(rich_help_panel="Servers")
def drill(
    servers: ServersOption = "all",
    model: ModelOption = None,
    workers: Annotated[int, typer.Option(min=2, help="Copies of the model per server.")] = 2,
) -> None:
    """Kill the processes of a stack of its own under load, and show how long each server takes to recover."""
    import tempfile

    from bundle.store import find_bundle
    from serving.settings import load_settings
    from serving.stack.endpoints import server_names
    from trident.console.servers import drill_servers

    settings = load_settings(workers=workers)
    with tempfile.TemporaryDirectory(prefix="trident-drill-") as folder:
        bundle = find_bundle(model, settings.bundles)
        right = drill_servers(settings, server_names(servers), bundle, Path(folder))
    raise typer.Exit(0 if right else 1)
