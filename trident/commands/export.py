"""Commands that write and list bundles: export, import, bundles."""

from pathlib import Path
from typing import Annotated

import typer

from trident.options import BUNDLES, BundlesOption, DropOption, EdgeOption, PrecisionsOption, VersionOption

commands = typer.Typer()


@commands.command(rich_help_panel="Model")
def export(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Default: the newest in artifacts/runs.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: the run's name.")] = None,
    version: VersionOption = None,
    bundles: BundlesOption = BUNDLES,
    precisions: PrecisionsOption = "fp32",
    edge: EdgeOption = False,
    max_accuracy_drop: DropOption = 0.02,
) -> None:
    """Export a checkpoint as ONNX, TorchScript and .pt2, compare each file with PyTorch, and write the bundle.

    [dim]trident export --precisions int8,fp16[/]
    """
    from training.run_folder import newest_checkpoint
    from trident.console.export import export_options, export_run

    options = export_options(precisions, edge, max_accuracy_drop)
    export_run(checkpoint or newest_checkpoint(), bundles, name, version, options)


@commands.command("import", rich_help_panel="Model")
def import_(
    name: Annotated[str, typer.Argument(help="efficientnet_lite0 (offline), or a torchvision classifier.")],
    version: VersionOption = None,
    bundles: BundlesOption = BUNDLES,
    precisions: PrecisionsOption = "fp32",
    edge: EdgeOption = False,
    max_accuracy_drop: DropOption = 0.02,
) -> None:
    """Write a bundle of published weights.

    [dim]trident import efficientnet_lite0[/]    ImageNet, 1000 labels, 224x224; works offline
    [dim]trident import resnet50[/]              downloads torchvision's weights
    """
    from trident.console.export import export_options, import_run

    import_run(name, bundles, version, export_options(precisions, edge, max_accuracy_drop))


@commands.command("bundles", rich_help_panel="Model")
def list_bundles(bundles: BundlesOption = BUNDLES) -> None:
    """List the bundles."""
    from trident.console.export import show_bundles

    show_bundles(bundles)
