"""Whom to ask: addresses from the command line, or the servers of the running stack."""

from collections.abc import Sequence

from bundle.errors import DeploymentError
from bundle.store import Bundle, find_bundle, read_bundle
from serving.clients.endpoint import SERVERS, Endpoint, Protocol, ServerName
from serving.settings import ServingSettings
from serving.stack.control import current_stack
from serving.stack.state import StackState


def server_names(text: str) -> list[ServerName]:
    """`all`, or names separated by commas.

    Raises:
        DeploymentError: a name is unknown.
    """
    names = list(SERVERS) if text == "all" else [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in SERVERS]
    if unknown:
        raise DeploymentError(f"unknown server {', '.join(map(repr, unknown))}; known: {', '.join(SERVERS)}, all")
    return [name for name in SERVERS if name in names]


def parse_protocol(text: str) -> Protocol:
    """`http` or `grpc`.

    Raises:
        DeploymentError: it is something else.
    """
    if text == "http":
        return "http"
    if text == "grpc":
        return "grpc"
    raise DeploymentError(f"unknown protocol {text!r}; known: http, grpc")


def speaking(protocol: Protocol, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """The endpoints that speak a protocol.

    Raises:
        DeploymentError: none does.
    """
    found = [endpoint for endpoint in endpoints if protocol in endpoint.protocols]
    if not found:
        raise DeploymentError(f"none of {', '.join(endpoint.server for endpoint in endpoints)} speaks {protocol} here")
    return found


def running_state() -> StackState:
    """The state of the running stack.

    Raises:
        DeploymentError: no stack runs.
    """
    state = current_stack()
    if state is None:
        raise DeploymentError("no stack is running; start it with `trident up`")
    return state


def find_endpoints(
    settings: ServingSettings, servers: str, urls: Sequence[str] | None, model: str | None
) -> tuple[list[Endpoint], Bundle]:
    """Whom to ask, and the bundle whose answers are expected.

    Args:
        servers: of the running stack, as in `server_names`.
        urls: `SERVER=URL`, instead of the running stack.
        model: as in `find_bundle`; without a version the stack's default version. None: the stack's first model, or with
            `urls` the newest bundle.

    Raises:
        DeploymentError: no stack runs, or one of these servers is not ready.
        BundleError: there is no such bundle.
    """
    if urls:
        return [parse_url(entry) for entry in urls], find_bundle(model, settings.bundles)
    state = current_stack()
    if state is None:
        raise DeploymentError("no stack is running; start it with `trident up`, or name servers with --url")
    ready = {endpoint.server: endpoint for endpoint in state.endpoints()}
    names = list(state.servers) if servers == "all" else server_names(servers)
    missing = [name for name in names if name not in ready]
    if missing:
        raise DeploymentError(f"{', '.join(missing)} is not ready; see `trident status`")
    return [ready[name] for name in names], _served_bundle(state, model) or find_bundle(model, settings.bundles)


def _served_bundle(state: StackState, model: str | None) -> Bundle | None:
    """The default version of a served model (None: of the first one); None if the stack does not serve it."""
    deployment = state.deployment()
    if model is None:
        return deployment.default(deployment.default_model)
    return deployment.default(model) if deployment.versions(model) else None


def settings_in_force(settings: ServingSettings, *, given: bool) -> ServingSettings:
    """The settings of the running stack, with the API keys of `settings`; for `given` addresses `settings` themselves."""
    state = None if given else current_stack()
    return settings if state is None else state.settings.model_copy(update={"api_keys": settings.api_keys})


def is_default_version(bundle: Bundle) -> bool:
    """Whether the running stack answers by this bundle if a request names no version."""
    state = current_stack()
    return state is not None and state.deployment().is_default(bundle)


def parse_url(entry: str) -> Endpoint:
    """`SERVER=URL`, or with the addresses of gRPC, of the metrics and of the container's metrics
    `SERVER=URL,HOST:PORT,METRICS_URL,CONTAINER_URL`. What is left empty has its default.

    Raises:
        DeploymentError: it is something else.
    """
    server, _, addresses = entry.partition("=")
    url, grpc, metrics_url, container_url = [*addresses.split(","), "", "", ""][:4]
    if server not in SERVERS or not url.startswith(("http://", "https://")) or addresses.count(",") > 3:
        example = "fastapi=http://127.0.0.1:8000"
        raise DeploymentError(f"--url {entry!r} is not SERVER=URL ({example}); servers: {', '.join(SERVERS)}")
    url = url.rstrip("/")
    return Endpoint(
        server=server,
        url=url,
        grpc=grpc or None,
        metrics_url=metrics_url or f"{url}/metrics",
        container_url=container_url,
    )


def previous_bundle() -> Bundle:
    """The version that the last rollout of the running stack replaced.

    Raises:
        DeploymentError: no stack runs, or nothing was rolled out.
        BundleError: the bundle does not exist any more.
    """
    previous = running_state().previous
    if previous is None:
        raise DeploymentError("nothing was rolled out since `trident up`; there is nothing to go back to")
    return read_bundle(previous)
