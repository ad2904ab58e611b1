"""Commands that measure: bench, report, compare, tune, demo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trident.lineup import lane_opener, measurable
from trident.options import SERVERS_HELP, ModelOption, ServersOption, UrlOption

if TYPE_CHECKING:
    from bundle.store import Bundle

commands = typer.Typer()
console = Console()


@commands.command(rich_help_panel="Measurement")
def bench(
    servers: Annotated[str | None, typer.Option(help=f"{SERVERS_HELP}  [default: all]")] = None,
    model: ModelOption = None,
    url: UrlOption = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URL", help="Any server as a lane; alone, or beside --servers (repeatable)."),
    ] = None,
    runtime: Annotated[str, typer.Option(help="onnxruntime, torchscript (with commas): a stack for each.")] = "",
    precision: Annotated[str, typer.Option(help="fp32, int8, ... (with commas): a stack for each.")] = "",
    protocol: Annotated[str, typer.Option(help="http, grpc (with commas).")] = "http",
    send: Annotated[str, typer.Option(help="image, tensor (decoded by the client; with commas).")] = "image",
    lanes: Annotated[
        str, typer.Option(help="Of all these only some, by the report's names (fastapi,triton grpc).  [default: all]")
    ] = "",
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            help="single-stream, sweep, server, slo, offline, spike, soak (repeatable).  [default: the first two]"
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A benchmark as TOML; flags win over it. See docs/benchmarking.md.")
    ] = None,
    concurrency: Annotated[str | None, typer.Option(help="sweep: the ladder.  [default: 2,4,8,16]")] = None,
    rates: Annotated[str | None, typer.Option(help="server: requests/s.  [default: shares of the capacity]")] = None,
    slo_ms: Annotated[float | None, typer.Option(help="slo: p99 within.  [default: 50]")] = None,
    soak_s: Annotated[float | None, typer.Option(help="soak: how long.  [default: 60]")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Measured seconds per run.  [default: 5, slo: 3]")] = None,
    burn_in_s: Annotated[float | None, typer.Option(help="Load on every lane once, before all.  [default: 3]")] = None,
    warmup_s: Annotated[float | None, typer.Option(help="Warm up for at least so long.  [default: 1]")] = None,
    warmup_max_s: Annotated[float | None, typer.Option(help="And until stable, at most.  [default: 5]")] = None,
    rounds: Annotated[int | None, typer.Option(help="Repetitions, each in a new random order.  [default: 3]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order and of the arrivals.  [default: 0]")] = None,
    processes: Annotated[int | None, typer.Option(help="Generator processes.  [default: 1]")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of the machine: gives the cost per million.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the result.  [default: a new one]")] = None,
) -> None:
    """Measure latency and throughput, and write a report.

    Measures the running stack; or else stacks of its own, on other cores than the load generator's. A server that does
    not give the golden answers, before or while it is timed, makes the exit code 1.
    """
    from loadtest.lanes import only
    from loadtest.settings import read_settings
    from trident.console.measurement import bench_run

    settings = read_settings(
        file,
        scenario=scenario,
        concurrency=concurrency.split(",") if concurrency is not None else None,
        rates=rates.split(",") if rates is not None else None,
        slo_ms=slo_ms,
        soak_s=soak_s,
        duration_s=duration_s,
        burn_in_s=burn_in_s,
        warmup_s=warmup_s,
        warmup_max_s=warmup_max_s,
        rounds=rounds,
        seed=seed,
        processes=processes,
        price_per_hour=price_per_hour,
    )
    with measurable(servers, model, url, target, runtime, precision, protocol, send) as measured:
        if lanes:
            measured = only(measured, [name.strip() for name in lanes.split(",")])
        result = bench_run(measured, settings, out)
    raise typer.Exit(0 if result.sound else 1)


@commands.command(rich_help_panel="Measurement")
def report(
    result: Annotated[
        Path | None, typer.Argument(help="A result's folder or file; default: the newest.", show_default=False)
    ] = None,
) -> None:
    """Write the report of a result again."""
    from trident.console.measurement import report_again

    report_again(result)


@commands.command(rich_help_panel="Measurement")
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="A result's folder or file.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same lanes and loads.")],
    tolerance: Annotated[float, typer.Option(min=0, help="A smaller difference is none, however certain.")] = 0.03,
    out: Annotated[Path | None, typer.Option(help="The HTML.  [default: comparison.html beside B]")] = None,
) -> None:
    """Compare two results: exit code 1 if from A to B a lane became slower beyond the noise, or was lost."""
    from trident.console.measurement import compare_results

    raise typer.Exit(0 if compare_results(before, after, tolerance, out) else 1)


@commands.command(rich_help_panel="Measurement")
def tune(
    servers: ServersOption = "all",
    model: ModelOption = None,
    slo_ms: Annotated[float, typer.Option(help="The objective: p99 within so many milliseconds.")] = 50,
    duration_s: Annotated[float, typer.Option(help="Measured seconds per probe, at least.")] = 3,
    warmup_max_s: Annotated[float, typer.Option(help="Warm up before each probe until stable, but no longer.")] = 2,
    rounds: Annotated[int, typer.Option(min=3, help="Of the final benchmark: the two best beside the default.")] = 3,
) -> None:
    """Search workers, threads, batch size and queue delay of each server for the most requests/s under an objective.

    Starts servers of its own, on TRIDENT_CORES or on all cores but one, which is the load generator's.
    The best settings are written as tuned.toml, beside the benchmark that shows it.
    """
    from bundle.store import find_bundle
    from loadtest.cores import split_cores
    from loadtest.errors import LoadtestError
    from loadtest.settings import read_settings
    from loadtest.tune import candidates
    from serving.settings import load_settings
    from serving.stack.endpoints import server_names
    from serving.tuning import Tuning
    from trident.console.measurement import tune_run

    settings = read_settings(
        scenario=["slo"], slo_ms=slo_ms, duration_s=duration_s, warmup_max_s=warmup_max_s, rounds=rounds
    )
    serving = load_settings()
    bundle = find_bundle(model, serving.bundles)
    server_cores, generator_cores = split_cores(serving.cores)
    serving = serving.model_copy(update={"models": (str(bundle.path),), "cores": server_cores})
    right = True
    for server in server_names(servers):
        default = serving.of(server).model_dump(include=set(Tuning.model_fields))
        tried = candidates(server, serving.core_count, default)
        opener = lane_opener(server, serving, bundle, generator_cores)
        try:
            right &= tune_run(opener, server, tried, bundle, settings)
        except LoadtestError as error:  # the other servers can still be tuned
            console.print(f"{server}: {error}", style="red", markup=False)
            right = False
    raise typer.Exit(0 if right else 1)


@commands.command(rich_help_panel="Measurement")
def demo() -> None:
    """All of it: train on handwritten digits, export, deploy to three servers, verify, load-test, report, clean up."""
    from loadtest.settings import read_settings
    from serving.settings import load_settings
    from trident.console.measurement import bench_run
    from trident.console.requests import verify_servers

    console.rule("1/4  a model", align="left")
    bundle = _demo_bundle()
    console.rule("2/4  three servers", align="left")
    settings = read_settings(
        concurrency=(4, 16), duration_s=2, warmup_s=0.45, warmup_max_s=1, ceiling_s=0.5, calibration_s=0.5
    )
    with measurable("all", bundle.name, None) as measured:
        console.rule("3/4  the same answers?", align="left")
        endpoints = [target.endpoint for target in measured.targets if target.endpoint is not None]
        agree = verify_servers(endpoints, bundle, load_settings())
        console.rule("4/4  how fast?", align="left")
        result = bench_run(measured, settings)
    raise typer.Exit(0 if agree and result.sound else 1)


def _demo_bundle() -> "Bundle":
    """The digits bundle: the one that is there, or one from the checkpoint that is there, or trained now."""
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
