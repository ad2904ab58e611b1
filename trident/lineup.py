"""From flags to a lineup: given addresses, the running stack, or stacks started for the benchmark."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trident.console.output import console

if TYPE_CHECKING:
    from bundle.store import Bundle
    from loadtest.lanes.lineup import Lineup, ServerUnderTest
    from loadtest.tune import Changes, OpenLane
    from serving.clients.endpoint import Endpoint, ServerName
    from serving.settings import ServerSettings, ServingSettings
    from serving.stack.state import StackState


@contextmanager
def open_lineup(
    servers: str | None,
    model: str | None,
    url: list[str] | None = None,
    target: list[str] | None = None,
    runtimes: str = "",
    precisions: str = "",
    protocols: str = "http",
    send: str = "image",
) -> Iterator["Lineup"]:
    """Open the lineup of a benchmark: given addresses, or the running stack, or stacks started for this block on separate
    cores, one for each runtime and precision. The arguments are the flags of `trident bench`.
    """
    from loadtest.cores import other_cores, split_cores
    from loadtest.lanes.lineup import ServerUnderTest, lineup_of, parse_inputs
    from loadtest.lanes.third_party import parse_target
    from serving.deployment import Deployment
    from serving.settings import load_settings
    from serving.stack.control import current_stack, running_stack
    from serving.stack.endpoints import find_endpoints, parse_protocol, server_names
    from serving.stack.state import STACK
    from trident.console.stack import showing_stack

    spoken, inputs = [parse_protocol(name) for name in protocols.split(",")], parse_inputs(send)
    settings = load_settings()
    key = settings.client_key
    running = current_stack()
    third_party_only = bool(target) and servers is None
    if url or (running is not None and not (runtimes or precisions or third_party_only)):
        endpoints, bundle = find_endpoints(settings, servers or "all", url, model)
        state = None if url else running
        tested = (
            servers_under_test(state, endpoints, key)
            if state is not None
            else [ServerUnderTest(one, api_key=key) for one in endpoints]
        )
        others = [parse_target(entry, bundle) for entry in target or ()]
        cores = state.settings.cores if state is not None else ()
        yield lineup_of(tested, bundle, others, spoken, inputs, cores, other_cores(cores))
        return
    deployment = Deployment.of_one(model, settings)
    bundle = deployment.bundles[0]
    others = [parse_target(entry, bundle) for entry in target or ()]
    server_cores, generator_cores = split_cores(settings.cores)
    variants = [
        load_settings(runtime=runtime or None, precision=precision or None).model_copy(update={"cores": server_cores})
        for runtime in runtimes.split(",")
        for precision in precisions.split(",")
        if servers is not None or not others
    ]
    with ExitStack() as started:
        tested = []
        for number, variant in enumerate(variants):
            console.print(f"starting a stack with {bundle.name}, {variant.runtime}, {variant.precision}")
            folder = STACK if number == 0 else STACK.with_name(f"{STACK.name}-{number + 1}")
            with showing_stack() as on_change:
                state = started.enter_context(
                    running_stack(
                        variant, server_names(servers or "all"), folder, on_change=on_change, deployment=deployment
                    )
                )
            tested += servers_under_test(state, state.endpoints(), key)
        # Third-party servers alone run on cores that nobody here knows.
        if not tested:
            server_cores = generator_cores = ()
        yield lineup_of(tested, bundle, others, spoken, inputs, server_cores, generator_cores)
        if tested:
            console.print("stopping the servers")


def lane_opener(
    server: "ServerName", settings: "ServingSettings", bundle: "Bundle", generator_cores: tuple[int, ...]
) -> "OpenLane":
    """Return the function with which `trident tune` starts a server with changed settings, each in its own stack."""
    from bundle.errors import DeploymentError
    from loadtest.errors import TargetError
    from loadtest.lanes.lineup import lineup_of
    from serving.stack.control import running_stack
    from serving.stack.state import STACK
    from serving.tuning import Tuning

    @contextmanager
    def open_lane(changes: "Changes", number: int) -> Iterator["Lineup"]:
        folder = STACK.with_name(f"{STACK.name}-tune-{number}")
        changed = settings.model_copy(update={server: Tuning(**changes)}) if changes else settings
        try:
            with running_stack(changed, [server], folder) as state:
                tested = servers_under_test(state, state.endpoints(), settings.client_key)
                yield lineup_of(tested, bundle, server_cores=settings.cores, generator_cores=generator_cores)
        except DeploymentError as error:
            raise TargetError(f"the server did not start or stop: {error}") from error

    return open_lane


def settings_in_effect(server: "ServerName", settings: "ServingSettings", changes: "Changes") -> "Changes":
    """What a server makes of changed settings, by their names."""
    from serving.deployment import Deployment
    from serving.servers.server import server_class
    from serving.tuning import Tuning

    changed = settings.model_copy(update={server: Tuning(**changes)})
    expected = server_class(server)(changed, Deployment(()), Path()).expected_settings()
    return {name: expected[name] for name in changes}


def servers_under_test(
    state: "StackState", endpoints: Sequence["Endpoint"], key: str | None
) -> list["ServerUnderTest"]:
    """Describe the servers of one of our stacks to the load test. The state does not contain the API key."""
    from loadtest.lanes.lineup import ServerUnderTest

    pids = state.pids()
    return [
        ServerUnderTest(
            endpoint, _settings_to_store(state.settings.of(endpoint.server)), pids.get(endpoint.server, ()), key
        )
        for endpoint in endpoints
    ]


def _settings_to_store(settings: "ServerSettings") -> dict[str, Any]:
    """The settings as results store them: of this server only, with paths relative to the working folder."""
    from serving.tuning import DEFAULTS

    values = settings.model_dump(mode="json", exclude=set[str](DEFAULTS))
    stored: dict[str, Any] = json.loads(json.dumps(values).replace(f"{Path.cwd()}/", ""))
    return stored
