"""From flags to what is measured: given addresses, the stack that runs, or stacks started for it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from loadtest.benchmark import Lineup
    from loadtest.lanes import Stack
    from serving.server_plan import Endpoint
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
    send: str = "picture",
) -> Iterator["Lineup"]:
    """What is measured: given addresses, or the running stack, or stacks for this block on cores of their own, one for
    each runtime and precision. The arguments are the flags of `trident bench`.
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
        stacks = [served(state, endpoints) if state is not None else ours]
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
            stacks.append(served(state, state.endpoints()))
        yield lineup_of(stacks, bundle, given, spoken, inputs, server_cores, generator_cores)
        if stacks:
            console.print("stopping the servers")


def served(state: "StackState", endpoints: Sequence["Endpoint"]) -> "Stack":
    """What the load test needs to know of a stack of ours."""
    from loadtest.lanes import Stack

    settings = state.settings
    # As a reader elsewhere needs them: paths from the working folder on.
    shown = json.loads(json.dumps(settings.model_dump(mode="json")).replace(f"{Path.cwd()}/", ""))
    return Stack(tuple(endpoints), shown, state.pids(), settings.client_key)
