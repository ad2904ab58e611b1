"""Commands of the benchmark: bench, report, compare."""

from pathlib import Path
from typing import Annotated

import typer

from trident.lineup import open_lineup
from trident.options import SERVERS_HELP, ModelOption, UrlOption

commands = typer.Typer()


@commands.command(rich_help_panel="Measurement")
def bench(
    servers: Annotated[str | None, typer.Option(help=f"{SERVERS_HELP}  \\[default: all]")] = None,
    model: ModelOption = None,
    url: UrlOption = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL", help="A third-party server as a lane; alone, or beside --servers (repeatable)."
        ),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="onnxruntime, torchscript, openvino (comma-separated): starts a stack for each.")
    ] = "",
    precision: Annotated[str, typer.Option(help="fp32, int8, ... (comma-separated): starts a stack for each.")] = "",
    protocol: Annotated[str, typer.Option(help="http, grpc (comma-separated).")] = "http",
    send: Annotated[str, typer.Option(help="image, tensor (decoded by the client; comma-separated).")] = "image",
    lanes: Annotated[
        str,
        typer.Option(help="Only these lanes, by their names in the report (fastapi,triton grpc).  \\[default: all]"),
    ] = "",
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            help="single-stream, sweep, server, slo, offline, spike, soak (repeatable).  \\[default: single-stream, sweep]"
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Settings as TOML; flags override them. See docs/benchmarking.md.")
    ] = None,
    concurrency: Annotated[str | None, typer.Option(help="sweep: the concurrencies.  \\[default: 2,4,8,16]")] = None,
    rates: Annotated[str | None, typer.Option(help="server: requests/s.  \\[default: shares of the capacity]")] = None,
    slo_ms: Annotated[float | None, typer.Option(help="slo: the objective, p99 in ms.  \\[default: 50]")] = None,
    soak_s: Annotated[float | None, typer.Option(help="soak: length.  \\[default: 60]")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Measured seconds per run.  \\[default: 5, slo: 3]")] = None,
    initial_warmup_s: Annotated[
        float | None, typer.Option(help="Load on every lane before the first round.  \\[default: 3]")
    ] = None,
    warmup_s: Annotated[float | None, typer.Option(help="Shortest warm-up of a run.  \\[default: 1]")] = None,
    warmup_max_s: Annotated[
        float | None, typer.Option(help="Longest warm-up of a run; it ends when latency is stable.  \\[default: 5]")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Repetitions, each in a new random order.  \\[default: 3]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order and of the arrivals.  \\[default: 0]")] = None,
    processes: Annotated[int | None, typer.Option(help="Generator processes.  \\[default: 1]")] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Price of the machine; adds the cost per million requests.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the result; an earlier one there is replaced.  \\[default: a new one]"),
    ] = None,
) -> None:
    """Measure latency and throughput, and write a report.

    Measures the running stack. If none is running, starts its own, on other cores than the load generator. Exit code 1 if a
    lane does not give the golden answers, before or during the measurement.
    """
    from loadtest.lanes.lineup import select_lanes
    from loadtest.settings import read_settings
    from trident.console.bench import run_bench

    settings = read_settings(
        file,
        scenario=scenario,
        concurrency=concurrency.split(",") if concurrency is not None else None,
        rates=rates.split(",") if rates is not None else None,
        slo_ms=slo_ms,
        soak_s=soak_s,
        duration_s=duration_s,
        initial_warmup_s=initial_warmup_s,
        warmup_s=warmup_s,
        warmup_max_s=warmup_max_s,
        rounds=rounds,
        seed=seed,
        processes=processes,
        price_per_hour=price_per_hour,
    )
    with open_lineup(servers, model, url, target, runtime, precision, protocol, send) as lineup:
        if lanes:
            lineup = select_lanes(lineup, [name.strip() for name in lanes.split(",")])
        result = run_bench(lineup, settings, out)
    raise typer.Exit(0 if result.sound else 1)


@commands.command(rich_help_panel="Measurement")
def report(
    result: Annotated[
        Path | None, typer.Argument(help="A result's folder or file; default: the newest.", show_default=False)
    ] = None,
) -> None:
    """Write the report of an existing result."""
    from trident.console.bench import write_report_of

    write_report_of(result)


@commands.command(rich_help_panel="Measurement")
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="A result's folder or file.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another result with the same lanes and loads.")],
    tolerance: Annotated[float, typer.Option(min=0, help="Ignore smaller differences, even if significant.")] = 0.03,
    out: Annotated[Path | None, typer.Option(help="The HTML.  \\[default: comparison.html beside B]")] = None,
) -> None:
    """Compare two results. Exit code 1 if a lane is significantly slower in B, or missing."""
    from trident.console.bench import compare_results

    raise typer.Exit(0 if compare_results(before, after, tolerance, out) else 1)
