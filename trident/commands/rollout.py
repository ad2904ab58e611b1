"""Commands that change the served version: deploy, rollback."""

from typing import Annotated

import typer

from trident.options import LiveOption

commands = typer.Typer()


@commands.command(rich_help_panel="Servers")
def deploy(
    bundle: Annotated[str, typer.Argument(help="MODEL:VERSION, or MODEL for its highest version.")],
    live: LiveOption = False,
) -> None:
    """Replace the served version of a model on all running servers, without losing a request.

    The new version is loaded beside the old one and must give every golden answer; then it is switched to, and the old
    one is drained and unloaded. If an answer is wrong, nothing is switched, and the exit code is 1.
    """
    from bundle.store import find_bundle
    from serving.settings import load_settings
    from trident.console.rollout import deploy_bundle

    settings = load_settings()
    raise typer.Exit(0 if deploy_bundle(find_bundle(bundle, settings.bundles), settings, live=live) else 1)


@commands.command(rich_help_panel="Servers")
def rollback(live: LiveOption = False) -> None:
    """Deploy the version that the last deployment replaced."""
    from serving.settings import load_settings
    from serving.stack.endpoints import previous_bundle
    from trident.console.rollout import deploy_bundle

    raise typer.Exit(0 if deploy_bundle(previous_bundle(), load_settings(), live=live) else 1)
