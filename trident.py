"""Trident's front door: the command line over training, serving and load test.

This file has the flags and their help; what a command does is imported when it runs, so that `trident --help` is quick.
"""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from loadtest.benchmark import Lineup
    from loadtest.lanes import Stack
    from serving.bundle import Bundle
    from serving.server_plan import Endpoint, ServerName
    from serving.stack.state import StackState

HELP = """Train an image classifier once, serve it three ways, prove that the answers agree, and measure them honestly.

[bold]train[/] -> [bold]export[/] -> [bold]up[/] -> [bold]verify[/] -> [bold]bench[/] -> [bold]report[/];
or all of it at once: [bold]demo[/]."""
BUNDLES = Path("artifacts/bundles")

app = typer.Typer(
    help=HELP, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False
)
console = Console()

BundlesOption = Annotated[Path, typer.Option("--bundles", help="Folder of bundles.")]
VersionOption = Annotated[int | None, typer.Option(min=1, help="The bundle's version; default: the next one.")]
PrecisionsOption = Annotated[
    str, typer.Option(help="Also fp16, bf16, int8, int8-dynamic (with commas), or all; fp32 is always there.")
]
EdgeOption = Annotated[bool, typer.Option("--edge", help="Also onnxruntime's mobile format (.ort).")]
DropOption = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Refuse a lower precision that loses more accuracy (of imported weights: top-1 agreement)."
    ),
]
ServersOption = Annotated[str, typer.Option("--servers", help="fastapi, torchserve, triton (with commas), or all.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="MODEL, MODEL:VERSION or a bundle's folder; default: the newest bundle.")
]
UrlOption = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        metavar="SERVER=URL[,GRPC[,METRICS[,CONTAINER]]]",
        envvar="SERVER_URLS",
        help="Ask this address, not the local stack (repeatable; in the environment with spaces). GRPC is HOST:PORT, "
        "METRICS the URL of its metrics, CONTAINER that of its container's (CPU, memory, throttling).",
    ),
]


# --- Model


@app.command(rich_help_panel="Model")
def train(
    data: Annotated[str, typer.Option(help="digits (offline), cifar10, or a folder of your own pictures.")] = "digits",
    data_dir: Annotated[
        Path | None,
        typer.Option(help="cifar10: where it lies. folder: DIR/<label>/*.jpg or DIR/{train,val,test}/<label>/*.jpg."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="mlp, simple_cnn, resnet, resnet9, efficientnet_lite0, or a torchvision classifier's name. *"
        ),
    ] = None,
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained/--from-scratch", help="Start from ImageNet's weights. *")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name; default: the data set's.")] = None,
    image_size: Annotated[int | None, typer.Option(help="The model's input.  [default: 32; folder: 224]")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most so many passes over the data. *")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures per step, over all processes and accumulated parts. *")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd (Nesterov), adam or adamw. *")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest of the schedule. *")] = None,
    momentum: Annotated[float | None, typer.Option(help="SGD's.  [default: 0.9]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Not of biases and norms. *")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, step, cosine or onecycle. *")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Linear warm-up; OneCycle's rise. *")] = None,
    step_epochs: Annotated[int | None, typer.Option(help="Of schedule step: epochs between falls to a tenth.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of the label given to all classes. *")] = None,
    dropout: Annotated[float | None, typer.Option(help="Of our own models.  [default: 0.25]")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Compute each step in so many parts, to save memory.")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Keep a moving average of the weights; 0: none. *")] = None,
    freeze_epochs: Annotated[
        int | None, typer.Option(help="With --pretrained: train the head alone for so many epochs. *")
    ] = None,
    backbone_rate: Annotated[
        float | None, typer.Option(help="With --pretrained: the backbone's share of the learning rate.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a lower validation loss.  [default: 10]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same weights.  [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.  [default: auto]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16 or auto, which is mixed on CUDA.  [default: auto]")
    ] = None,
    channels_last: Annotated[
        bool | None, typer.Option("--channels-last/--channels-first", help="Memory order.  [default: channels-last]")
    ] = None,
    compile_: Annotated[bool | None, typer.Option("--compile/--eager", help="By torch.compile.")] = None,
    loader_workers: Annotated[
        int | None, typer.Option(help="Processes that decode and augment; 0: the training process.  [default: 0]")
    ] = None,
    prefetch: Annotated[int | None, typer.Option(help="Batches that each of them holds ready.  [default: 2]")] = None,
    tune_loader: Annotated[bool, typer.Option("--tune-loader", help="Measure and take the fastest loader.")] = False,
    checkpoint_steps: Annotated[
        int | None, typer.Option(help="A checkpoint every so many steps too, not only after each epoch.")
    ] = None,
    keep_last: Annotated[int | None, typer.Option(help="Checkpoints to resume from that are kept.")] = None,
    track: Annotated[str | None, typer.Option(help="tensorboard, mlflow (with commas); JSON lines are always.")] = None,
    profile: Annotated[int, typer.Option(help="Profile so many steps: a trace, and where the time goes.")] = 0,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run is kept; default: artifacts/runs/<name>/<time>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --run-dir, or the last one that did not end.")
    ] = False,
) -> None:
    """Train a classifier, and keep the best checkpoint. (* has a default per data set: see docs/training.md.)

    [dim]trident train[/]                                            handwritten digits
    [dim]trident train --data my_pictures[/]                         a folder per label
    [dim]trident train --resume[/]                                   after a crash or Ctrl-C
    [dim]torchrun --nproc-per-node 2 -m trident train ...[/]         several processes
    """
    given = {key.rstrip("_"): value for key, value in locals().items() if value is not None}
    for key in ("run_dir", "resume", "profile", "tune_loader"):
        given.pop(key, None)
    if track is not None:
        given["track"] = tuple(track.split(","))
    from training.console import train_run

    train_run(given, run_dir, resume=resume, profile=profile, tune_loader=tune_loader)


@app.command(rich_help_panel="Model", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sweep(
    context: typer.Context,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="FLAG=VALUE,VALUE", help="A flag of `trident train` and its values (repeatable)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every combination.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 2,
    sweep_dir: Annotated[
        Path | None, typer.Option(help="Where it is kept, and gone on with; default: artifacts/sweeps/<time>.")
    ] = None,
) -> None:
    """Train every combination of some settings, and compare. All other flags go to `trident train`.

    [dim]trident sweep --grid optimizer=adam,adamw --grid schedule=cosine,onecycle --seeds 3 --epochs 10[/]
    [dim]trident sweep --seeds 5[/]     how sure the default is
    """
    from training.console import sweep_run

    sweep_run(grid or [], seeds, jobs, context.args, sweep_dir)


@app.command(rich_help_panel="Model")
def export(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Default: the newest below artifacts/runs.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name; default: the run's.")] = None,
    version: VersionOption = None,
    bundles: BundlesOption = BUNDLES,
    precisions: PrecisionsOption = "fp32",
    edge: EdgeOption = False,
    max_accuracy_drop: DropOption = 0.02,
) -> None:
    """Export a checkpoint as ONNX, TorchScript and .pt2, prove that they agree with PyTorch, and write the bundle.

    [dim]trident export --precisions int8,fp16[/]
    """
    from training.console import export_run, newest_checkpoint, wanted_files

    wanted = wanted_files(precisions, edge, max_accuracy_drop)
    export_run(checkpoint or newest_checkpoint(), bundles, name, version, wanted)


@app.command("import", rich_help_panel="Model")
def import_(
    name: Annotated[str, typer.Argument(help="efficientnet_lite0 (offline), or a torchvision classifier.")],
    version: VersionOption = None,
    bundles: BundlesOption = BUNDLES,
    precisions: PrecisionsOption = "fp32",
    edge: EdgeOption = False,
    max_accuracy_drop: DropOption = 0.02,
) -> None:
    """Make a bundle of published weights.

    [dim]trident import efficientnet_lite0[/]    ImageNet, 1000 labels, 224x224; needs no network
    [dim]trident import resnet50[/]              torchvision's weights, downloaded
    """
    from training.console import import_run, wanted_files

    import_run(name, bundles, version, wanted_files(precisions, edge, max_accuracy_drop))


@app.command("bundles", rich_help_panel="Model")
def list_bundles(bundles: BundlesOption = BUNDLES) -> None:
    """List the bundles."""
    from training.console import show_bundles

    show_bundles(bundles)


# --- Servers


@app.command(rich_help_panel="Servers")
def up(
    servers: ServersOption = "all",
    model: Annotated[
        list[str] | None, typer.Option(help="MODEL or MODEL:VERSION (repeatable); default: the newest bundle.")
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="onnxruntime or torchscript.  [default: onnxruntime]")] = None,
    workers: Annotated[int | None, typer.Option(help="Copies of the model per server.  [default: 1]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads per copy.  [default: cores / workers]")] = None,
    max_batch_size: Annotated[int | None, typer.Option(help="Pictures per batch, at most.  [default: 8]")] = None,
    queue_delay_ms: Annotated[
        float | None, typer.Option(help="How long a request may wait for others.  [default: 0]")
    ] = None,
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Take any free ports.")] = False,
) -> None:
    """Start the servers in the background; return when all of them give right answers.

    Every setting is also an environment variable (TRIDENT_QUEUE_SIZE=64) and a key in trident.toml.
    """
    from serving.console import bring_up
    from serving.settings import load_settings
    from serving.stack.endpoints import server_names

    settings = load_settings(
        models=tuple(model) if model else None,
        runtime=runtime,
        workers=workers,
        threads=threads,
        max_batch_size=max_batch_size,
        queue_delay_ms=queue_delay_ms,
    )
    bring_up(settings, server_names(servers), free_ports=free_ports)


@app.command(rich_help_panel="Servers")
def status(as_json: Annotated[bool, typer.Option("--json", help="The state as JSON.")] = False) -> None:
    """Show the servers, and whether each answers a real picture rightly; exit code 1 if one does not."""
    from serving.console import show_status

    raise typer.Exit(0 if show_status(as_json=as_json) else 1)


@app.command(rich_help_panel="Servers")
def down(quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing.")] = False) -> None:
    """Stop the servers; return when every process of theirs is gone."""
    from serving.console import take_down

    take_down(quiet=quiet)


@app.command(rich_help_panel="Servers")
def deploy(
    bundle: Annotated[str, typer.Argument(help="MODEL:VERSION, or MODEL for its highest version.")],
    live: Annotated[
        bool, typer.Option("--live", help="Send requests all the while, and show what failed or was wrong.")
    ] = False,
) -> None:
    """Put another version of a model on all running servers, without losing a request.

    Loaded beside the old version, asked for every golden answer, then switched to; the old one answers what it took and
    is unloaded. If an answer is wrong, nothing is switched, and the exit code is 1.
    """
    from serving.bundle import find_bundle
    from serving.console import deploy_bundle
    from serving.settings import load_settings

    raise typer.Exit(0 if deploy_bundle(find_bundle(bundle, load_settings().bundles), live=live) else 1)


@app.command(rich_help_panel="Servers")
def rollback(
    live: Annotated[
        bool, typer.Option("--live", help="Send requests all the while, and show what failed or was wrong.")
    ] = False,
) -> None:
    """Deploy what the last deployment replaced."""
    from serving.console import deploy_bundle
    from serving.stack.endpoints import previous_bundle

    raise typer.Exit(0 if deploy_bundle(previous_bundle(), live=live) else 1)


@app.command(rich_help_panel="Servers")
def predict(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files.", exists=True, dir_okay=False)],
    server: Annotated[str, typer.Option(help="fastapi, torchserve, triton (with commas), or all.")] = "all",
    model: ModelOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 3,
    protocol: Annotated[str, typer.Option(help="http, or grpc (TorchServe and Triton).")] = "http",
    url: UrlOption = None,
) -> None:
    """Ask the running servers what is in a picture."""
    from serving.console import predict_pictures
    from serving.stack.endpoints import find_endpoints, parse_protocol, speaking

    spoken = parse_protocol(protocol)
    endpoints, bundle = find_endpoints(server, url, model)
    raise typer.Exit(0 if predict_pictures(pictures, speaking(spoken, endpoints), bundle, top_k, spoken) else 1)


@app.command(rich_help_panel="Servers")
def verify(servers: ServersOption = "all", model: ModelOption = None, url: UrlOption = None) -> None:
    """Prove that the servers agree: golden answers, odd pictures, errors, health, metrics, versions, over every protocol.

    A table with a row per check and a column per server and protocol; exit code 1 if anything failed.
    """
    from serving.console import verify_servers
    from serving.stack.endpoints import find_endpoints, is_default_version, settings_in_force

    endpoints, bundle = find_endpoints(servers, url, model)
    settings = settings_in_force(given=bool(url))
    is_default = bool(url) or is_default_version(bundle)
    raise typer.Exit(0 if verify_servers(endpoints, bundle, settings, is_default=is_default) else 1)


@app.command(rich_help_panel="Servers")
def drill(
    servers: ServersOption = "all",
    model: ModelOption = None,
    workers: Annotated[int, typer.Option(min=2, help="Copies of the model per server.")] = 2,
) -> None:
    """Kill the processes of a stack of its own under load, and show how long each server takes to recover."""
    import tempfile

    from serving.bundle import find_bundle
    from serving.console import drill_servers
    from serving.settings import load_settings
    from serving.stack.endpoints import server_names

    settings = load_settings(workers=workers)
    with tempfile.TemporaryDirectory(prefix="trident-drill-") as folder:
        bundle = find_bundle(model, settings.bundles)
        right = drill_servers(settings, server_names(servers), bundle, Path(folder))
    raise typer.Exit(0 if right else 1)


# --- Measurement


@app.command(rich_help_panel="Measurement")
def bench(
    servers: Annotated[
        str | None, typer.Option(help="fastapi, torchserve, triton (with commas), or all.  [default: all]")
    ] = None,
    model: ModelOption = None,
    url: UrlOption = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URL", help="Any server as a lane; alone, or beside --servers (repeatable)."),
    ] = None,
    runtime: Annotated[str, typer.Option(help="onnxruntime, torchscript (with commas): a stack for each.")] = "",
    precision: Annotated[str, typer.Option(help="fp32, int8, ... (with commas): a stack for each.")] = "",
    protocol: Annotated[str, typer.Option(help="http, grpc (with commas).")] = "http",
    send: Annotated[str, typer.Option(help="picture, tensor (decoded by the client; with commas).")] = "picture",
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            help="single-stream, sweep, server, slo, offline, spike, soak (repeatable).  [default: the first two]"
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A benchmark as TOML; flags win over it. See docs/benchmark.md.")
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
    from loadtest.console import bench_run
    from loadtest.settings import read_settings

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
    with _measurable(servers, model, url, target, runtime, precision, protocol, send) as measured:
        result = bench_run(measured, settings, out)
    raise typer.Exit(0 if result.sound else 1)


@app.command(rich_help_panel="Measurement")
def report(
    result: Annotated[
        Path | None, typer.Argument(help="A result's folder or file; default: the newest.", show_default=False)
    ] = None,
) -> None:
    """Write the report of a result again."""
    from loadtest.console import report_again

    report_again(result)


@app.command(rich_help_panel="Measurement")
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="A result's folder or file.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same lanes and loads.")],
    tolerance: Annotated[float, typer.Option(min=0, help="A smaller difference is none, however certain.")] = 0.03,
    out: Annotated[Path | None, typer.Option(help="The HTML.  [default: comparison.html beside B]")] = None,
) -> None:
    """Compare two results; exit code 1 if a lane became slower from A to B, beyond the noise."""
    from loadtest.console import compare_results

    raise typer.Exit(0 if compare_results(before, after, tolerance, out) else 1)


@app.command(rich_help_panel="Measurement")
def tune(
    servers: ServersOption = "all",
    model: ModelOption = None,
    slo_ms: Annotated[float, typer.Option(help="The objective: p99 within so many milliseconds.")] = 50,
    duration_s: Annotated[float, typer.Option(help="Measured seconds per probe, at least.")] = 3,
    warmup_max_s: Annotated[float, typer.Option(help="Warm up each probe until stable, at most.")] = 2,
    rounds: Annotated[int, typer.Option(help="Of the final benchmark, default against best.")] = 3,
) -> None:
    """Search workers, threads, batch size and queue delay of each server for the most requests/s under an objective.

    Starts servers of its own, on TRIDENT_CORES or on all cores but one, which is the load generator's. The best settings
    are written as tuned.toml, beside the benchmark that shows it.
    """
    from loadtest.console import split_cores, tune_run
    from loadtest.settings import read_settings
    from serving.bundle import find_bundle
    from serving.settings import load_settings
    from serving.stack.control import running_stack
    from serving.stack.endpoints import server_names
    from serving.stack.state import STACK

    settings = read_settings(
        scenario=["slo"], slo_ms=slo_ms, duration_s=duration_s, warmup_max_s=warmup_max_s, rounds=rounds
    )
    serving = load_settings()
    bundle = find_bundle(model, serving.bundles)
    cores = split_cores(serving.cores)
    for server in server_names(servers):

        @contextmanager
        def open_stack(changes: dict[str, Any], number: int, server: "ServerName" = server) -> "Iterator[Stack]":
            changed = serving.model_copy(update={"models": (str(bundle.path),), "cores": cores[0], **changes})
            with running_stack(changed, [server], STACK.with_name(f"{STACK.name}-tune-{number}")) as state:
                yield _served(state, state.endpoints())

        tune_run(open_stack, server, bundle, settings, cores)


@app.command(rich_help_panel="Measurement")
def demo() -> None:
    """All of it: train on handwritten digits, export, deploy to three servers, verify, load-test, report, clean up."""
    from loadtest.console import bench_run
    from loadtest.settings import read_settings
    from serving.console import verify_servers

    console.rule("1/4  a model", align="left")
    bundle = _demo_bundle()
    console.rule("2/4  three servers", align="left")
    settings = read_settings(
        concurrency=(4, 16), duration_s=2, warmup_s=0.45, warmup_max_s=1, ceiling_s=0.5, calibration_s=0.5
    )
    with _measurable("all", bundle.name, None) as measured:
        console.rule("3/4  the same answers?", align="left")
        endpoints = [target.endpoint for target in measured.targets if target.endpoint is not None]
        agree = verify_servers(endpoints, bundle)
        console.rule("4/4  how fast?", align="left")
        result = bench_run(measured, settings)
    raise typer.Exit(0 if agree and result.sound else 1)


def _demo_bundle() -> "Bundle":
    """The digits bundle: the one that is there, or one from the checkpoint that is there, or trained now."""
    from serving.bundle import find_bundle
    from serving.errors import BundleError
    from training.console import export_run, newest_checkpoint, train_run
    from training.errors import CheckpointError

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


@contextmanager
def _measurable(
    servers: str | None,
    model: str | None,
    url: list[str] | None = None,
    target: list[str] | None = None,
    runtimes: str = "",
    precisions: str = "",
    protocols: str = "http",
    send: str = "picture",
) -> "Iterator[Lineup]":
    """What is measured: given addresses, or the running stack, or stacks for this block on cores of their own, one for
    each runtime and precision.
    """
    from loadtest.console import other_cores, split_cores
    from loadtest.lanes import Stack, lineup_of, parse_inputs, parse_target
    from serving.bundle import find_bundle
    from serving.console import showing_stack
    from serving.settings import load_settings
    from serving.stack.control import current_stack, running_stack
    from serving.stack.endpoints import find_endpoints, parse_protocol, server_names
    from serving.stack.state import STACK

    spoken, inputs = [parse_protocol(name) for name in protocols.split(",")], parse_inputs(send)
    running = current_stack()
    alone = bool(target) and servers is None
    if url or (running is not None and not (runtimes or precisions or alone)):
        endpoints, bundle = find_endpoints(servers or "all", url, model)
        state = None if url else running
        ours = Stack(tuple(endpoints), api_key=load_settings().client_key)
        stacks = [_served(state, endpoints) if state is not None else ours]
        others = [parse_target(entry, bundle) for entry in target or ()]
        cores = state.settings.cores if state is not None else ()
        yield lineup_of(stacks, bundle, others, spoken, inputs, cores, other_cores(cores))
        return
    settings = load_settings()
    bundle = find_bundle(model, settings.bundles)
    given = [parse_target(entry, bundle) for entry in target or ()]
    server_cores, generator_cores = split_cores(settings.cores)
    variants = [
        load_settings(runtime=runtime or None, precision=precision or None).model_copy(
            update={"models": (str(bundle.path),), "cores": server_cores}
        )
        for runtime in runtimes.split(",")
        for precision in precisions.split(",")
        if servers is not None or not given
    ]
    with ExitStack() as started:
        stacks = []
        for number, variant in enumerate(variants):
            console.print(f"starting a stack with {bundle.name}, {variant.runtime}, {variant.precision}")
            folder = STACK if number == 0 else STACK.with_name(f"{STACK.name}-{number + 1}")
            with showing_stack() as on_change:
                state = started.enter_context(
                    running_stack(variant, server_names(servers or "all"), folder, on_change=on_change)
                )
            stacks.append(_served(state, state.endpoints()))
        yield lineup_of(stacks, bundle, given, spoken, inputs, server_cores, generator_cores)
        if stacks:
            console.print("stopping the servers")


def _served(state: "StackState", endpoints: "Sequence[Endpoint]") -> "Stack":
    """What the load test needs to know of a stack of ours."""
    from loadtest.lanes import Stack

    settings = state.settings
    # As a reader elsewhere needs them: paths from the working folder on.
    shown = json.loads(json.dumps(settings.model_dump(mode="json")).replace(f"{Path.cwd()}/", ""))
    return Stack(tuple(endpoints), shown, state.pids(), settings.client_key)


# --- the program


def main() -> NoReturn:
    """The `trident` command: our own errors become one red line, and SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(app())
    except Exception as error:
        if not isinstance(error, _our_errors()):
            raise
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _our_errors() -> tuple[type[Exception], ...]:
    from loadtest.errors import LoadtestError
    from serving.errors import TridentError
    from training.errors import TrainingError

    return (TridentError, TrainingError, LoadtestError)


if __name__ == "__main__":
    main()
