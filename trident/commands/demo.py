"""The command that runs everything once: demo."""

from typing import TYPE_CHECKING, Annotated

import typer

from trident.console.output import console
from trident.lineup import open_lineup

if TYPE_CHECKING:
    from bundle.store import Bundle

commands = typer.Typer()


@commands.command(rich_help_panel="Measurement")
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="One short round: the figures show little.")] = False,
) -> None:
    """Run everything once: train on handwritten digits, export, deploy to three servers, verify, load-test, report, clean up."""
    from loadtest.settings import read_settings
    from serving.settings import load_settings
    from trident.console.bench import run_bench
    from trident.console.requests import verify_servers

    console.rule("1/4  model", align="left")
    bundle = _demo_bundle()
    console.rule("2/4  servers", align="left")
    lengths = {"rounds": 1, "duration_s": 0.7, "initial_warmup_s": 1} if quick else {"duration_s": 2}
    settings = read_settings(
        concurrency=(4, 16), warmup_s=0.45, warmup_max_s=1, ceiling_s=0.5, calibration_s=0.5, **lengths
    )
    with open_lineup("all", bundle.name, None) as lineup:
        console.rule("3/4  verify", align="left")
        endpoints = [lane.endpoint for lane in lineup.lanes if lane.endpoint is not None]
        agree = verify_servers(endpoints, bundle, load_settings())
        console.rule("4/4  benchmark", align="left")
        result = run_bench(lineup, settings)
    raise typer.Exit(0 if agree and result.sound else 1)


def _demo_bundle() -> "Bundle":
    """Find the digits bundle, or export the existing checkpoint, or train one."""
    from bundle.errors import BundleError
    from bundle.store import find_bundle
    from training.errors import CheckpointError
    from training.run_folder import newest_checkpoint
    from trident.console.export import export_run
    from trident.console.training import train_run

    try:
        bundle = find_bundle("digits")
    except BundleError:
        pass
    else:
        console.print(f"reusing bundle [bold]{bundle.name}[/]: {bundle.path}")
        return bundle
    try:
        checkpoint = newest_checkpoint("digits")
        console.print(f"reusing checkpoint {checkpoint}")
    except CheckpointError:
        checkpoint = train_run({}).checkpoint
    return export_run(checkpoint)
