"""From flags to what is measured: given addresses, the stack that runs, or stacks started for it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from bundle.store import Bundle
    from loadtest.benchmark import Lineup
    from loadtest.lanes import Served
    from loadtest.tune import Changes, OpenLane
    from serving.clients.endpoint import Endpoint, ServerName
    from serving.settings import ServerSettings, ServingSettings
    from serving.stack.state import StackState

console = Console()


@contextmanager
def measurable(
    servers: str | None,
    model: str | None,
    url: list[str] | None = None,
    target: list[str] | None = None,
    runtimes: str = "",
    precisions: str = "",
    protocols: str = "http",
    send: str = "image",
) -> Iterator["Lineup"]:
    """What is measured: given addresses, or the running stack, or stacks for this block on cores of their own, one for
    each runtime and precision. The arguments are the flags of `trident bench`.
    """
    from bundle.store import find_bundle
    from loadtest.cores import other_cores, split_cores
    from loadtest.lanes import Served, lineup_of, parse_inputs, parse_target
    from serving.settings import load_settings
    from serving.stack.control import current_stack, running_stack
    from serving.stack.endpoints import find_endpoints, parse_protocol, server_names
    from serving.stack.state import STACK
    from trident.console.stack import showing_stack

    spoken, inputs = [parse_protocol(name) for name in protocols.split(",")], parse_inputs(send)
    running = current_stack()
    alone = bool(target) and servers is None
    if url or (running is not None and not (runtimes or precisions or alone)):
        ours = load_settings()
        endpoints, bundle = find_endpoints(ours, servers or "all", url, model)
        state = None if url else running
        key = ours.client_key
        measured = served(state, endpoints) if state is not None else [Served(one, api_key=key) for one in endpoints]
        others = [parse_target(entry, bundle) for entry in target or ()]
        cores = state.settings.cores if state is not None else ()
        yield lineup_of(measured, bundle, others, spoken, inputs, cores, other_cores(cores))
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
        measured = []
        for number, variant in enumerate(variants):
            console.print(f"starting a stack with {bundle.name}, {variant.runtime}, {variant.precision}")
            folder = STACK if number == 0 else STACK.with_name(f"{STACK.name}-{number + 1}")
            with showing_stack() as on_change:
                state = started.enter_context(
                    running_stack(variant, server_names(servers or "all"), folder, on_change=on_change)
                )
            measured += served(state, state.endpoints())
        yield lineup_of(measured, bundle, given, spoken, inputs, server_cores, generator_cores)
        if measured:
            console.print("stopping the servers")


def lane_opener(
    server: "ServerName", settings: "ServingSettings", bundle: "Bundle", generator_cores: tuple[int, ...]
) -> "OpenLane":
    """How `trident tune` starts a server with changed settings: each in a stack of its own."""
    from bundle.errors import DeploymentError
    from loadtest.errors import TargetError
    from loadtest.lanes import lineup_of
    from serving.stack.control import running_stack
    from serving.stack.state import STACK
    from serving.tuning import Tuning

    @contextmanager
    def open_lane(changes: "Changes", number: int) -> Iterator["Lineup"]:
        folder = STACK.with_name(f"{STACK.name}-tune-{number}")
        changed = settings.model_copy(update={server: Tuning(**changes)}) if changes else settings
        try:
            with running_stack(changed, [server], folder) as state:
                measured = served(state, state.endpoints())
                yield lineup_of(measured, bundle, server_cores=settings.cores, generator_cores=generator_cores)
        except DeploymentError as error:
            raise TargetError(f"it does not start, or end: {error}") from error

    return open_lane


def served(state: "StackState", endpoints: Sequence["Endpoint"]) -> list["Served"]:
    """What the load test needs to know of the servers of a stack of ours."""
    from loadtest.lanes import Served
    from serving.settings import load_settings

    pids, key = state.pids(), load_settings().client_key  # the state does not tell it
    return [
        Served(endpoint, _shown(state.settings.of(endpoint.server)), pids.get(endpoint.server, ()), key)
        for endpoint in endpoints
    ]


def _shown(settings: "ServerSettings") -> dict[str, Any]:
    """As a reader elsewhere needs them: of this server alone, and paths from the working folder on."""
    from serving.tuning import DEFAULTS

    values = settings.model_dump(mode="json", exclude=set[str](DEFAULTS))
    shown: dict[str, Any] = json.loads(json.dumps(values).replace(f"{Path.cwd()}/", ""))
    return shown
