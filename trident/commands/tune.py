"""The command that searches the settings of the servers: tune."""

from functools import partial
from typing import Annotated

import typer

from trident.console.output import console
from trident.lineup import lane_opener, settings_in_effect
from trident.options import ModelOption, ServersOption

commands = typer.Typer()


@commands.command(rich_help_panel="Measurement")
def tune(
    servers: ServersOption = "all",
    model: ModelOption = None,
    slo_ms: Annotated[float, typer.Option(help="The objective: p99 in ms.")] = 50,
    duration_s: Annotated[float, typer.Option(help="Shortest measurement of a probe, in seconds.")] = 3,
    warmup_max_s: Annotated[
        float, typer.Option(help="Longest warm-up of a probe; it ends when latency is stable.")
    ] = 2,
    rounds: Annotated[
        int, typer.Option(min=3, help="Rounds of the final benchmark: the two best candidates and the default.")
    ] = 3,
) -> None:
    """Search workers, threads, batch size and queue delay of each server for the highest rate under an objective.

    Starts its own servers, on TRIDENT_CORES or on all cores but one, which the load generator gets. Writes the best settings
    to tuned.toml, beside the final benchmark.
    """
    from bundle.store import find_bundle
    from loadtest.cores import split_cores
    from loadtest.errors import LoadtestError
    from loadtest.settings import read_settings
    from loadtest.tune import candidates
    from serving.settings import load_settings
    from serving.stack.endpoints import server_names
    from serving.tuning import Tuning
    from trident.console.tune import run_tune

    settings = read_settings(
        scenario=["slo"], slo_ms=slo_ms, duration_s=duration_s, warmup_max_s=warmup_max_s, rounds=rounds
    )
    serving = load_settings()
    bundle = find_bundle(model, serving.bundles)
    server_cores, generator_cores = split_cores(serving.cores)
    serving = serving.model_copy(update={"models": (str(bundle.path),), "cores": server_cores})
    passed = True
    for server in server_names(servers):
        default = serving.of(server).model_dump(include=set(Tuning.model_fields))
        tried = candidates(serving.core_count, default, partial(settings_in_effect, server, serving))
        opener = lane_opener(server, serving, bundle, generator_cores)
        try:
            passed &= run_tune(opener, server, tried, bundle, settings)
        except LoadtestError as error:  # continue with the other servers
            console.print(f"{server}: {error}", style="red", markup=False)
            passed = False
    raise typer.Exit(0 if passed else 1)
