"""Commands that send requests to the servers: predict, verify, drill."""

from pathlib import Path
from typing import Annotated

import typer

from trident.options import ModelOption, ServersOption, UrlOption

commands = typer.Typer()


@commands.command(rich_help_panel="Servers")
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.", exists=True, dir_okay=False)],
    servers: ServersOption = "all",
    model: ModelOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 3,
    protocol: Annotated[str, typer.Option(help="http, or grpc (TorchServe and Triton).")] = "http",
    url: UrlOption = None,
) -> None:
    """Classify images by the running servers."""
    from serving.settings import load_settings
    from serving.stack.endpoints import find_endpoints, parse_protocol, speaking
    from trident.console.requests import predict_images

    settings, spoken = load_settings(), parse_protocol(protocol)
    endpoints, bundle = find_endpoints(settings, servers, url, model)
    answered = predict_images(images, speaking(spoken, endpoints), bundle, top_k, spoken, settings.client_key)
    raise typer.Exit(0 if answered else 1)


@commands.command(rich_help_panel="Servers")
def verify(servers: ServersOption = "all", model: ModelOption = None, url: UrlOption = None) -> None:
    """Prove that the servers agree: golden answers, edge-case images, errors, health, metrics, versions.

    A table with a row per check and a column per server and protocol. Exit code 1 if a check failed.
    """
    from serving.settings import load_settings
    from serving.stack.endpoints import find_endpoints, is_default_version, settings_in_force
    from trident.console.requests import verify_servers

    settings = load_settings()
    endpoints, bundle = find_endpoints(settings, servers, url, model)
    in_force = settings_in_force(settings, given=bool(url))
    is_default = bool(url) or is_default_version(bundle)
    raise typer.Exit(0 if verify_servers(endpoints, bundle, in_force, is_default=is_default) else 1)


@commands.command(rich_help_panel="Servers")
def drill(
    servers: ServersOption = "all",
    model: ModelOption = None,
    workers: Annotated[int, typer.Option(min=2, help="Copies of the model per server.")] = 2,
) -> None:
    """Kill the processes of a separate stack under load, and show how long each server takes to recover."""
    import tempfile

    from serving.deployment import Deployment
    from serving.settings import load_settings
    from serving.stack.endpoints import server_names
    from trident.console.requests import drill_servers

    settings = load_settings(workers=workers)
    deployment = Deployment.of_one(model, settings)
    with tempfile.TemporaryDirectory(prefix="trident-drill-") as folder:
        right = drill_servers(settings, server_names(servers), deployment, Path(folder))
    raise typer.Exit(0 if right else 1)
