"""Whom to ask: addresses given by hand, or the servers of the running stack."""

from collections.abc import Sequence

from bundle.errors import DeploymentError
from bundle.store import Bundle, find_bundle, read_bundle
from serving.clients.endpoint import SERVERS, Endpoint, Protocol, ServerName
from serving.settings import ServingSettings, load_settings
from serving.stack.control import current_stack


def server_names(text: str) -> list[ServerName]:
    """`all`, or names separated by commas.

    Raises:
        DeploymentError: an unknown name.
    """
    names = list(SERVERS) if text == "all" else [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in SERVERS]
    if unknown:
        raise DeploymentError(
            f"unknown server {', '.join(map(repr, unknown))}; there are {', '.join(SERVERS)}, and all"
        )
    return [name for name in SERVERS if name in names]


def parse_protocol(text: str) -> Protocol:
    """`http` or `grpc`.

    Raises:
        DeploymentError: something else.
    """
    if text == "http":
        return "http"
    if text == "grpc":
        return "grpc"
    raise DeploymentError(f"unknown protocol {text!r}; there are http and grpc")


def speaking(protocol: Protocol, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Those that speak it.

    Raises:
        DeploymentError: none does.
    """
    found = [endpoint for endpoint in endpoints if protocol in endpoint.protocols]
    if not found:
        raise DeploymentError(f"none of {', '.join(endpoint.server for endpoint in endpoints)} speaks {protocol} here")
    return found


def find_endpoints(servers: str, urls: Sequence[str] | None, model: str | None) -> tuple[list[Endpoint], Bundle]:
    """Where to ask, and the bundle whose answers are expected.

    Args:
        servers: as `server_names`; of the running stack.
        urls: `SERVER=URL`; if there are any, they are asked instead of the stack.
        model: as `find_bundle`; by default the stack's first model, or with `urls` the newest bundle.

    Raises:
        DeploymentError: no stack runs, or a server that was asked for is not ready.
        BundleError: no such bundle.
    """
    bundles = load_settings().bundles
    if urls:
        return [parse_url(entry) for entry in urls], find_bundle(model, bundles)
    state = current_stack()
    if state is None:
        raise DeploymentError("no stack is running; start it with `trident up`, or name servers with --url")
    ready = {endpoint.server: endpoint for endpoint in state.endpoints()}
    names = list(state.servers) if servers == "all" else server_names(servers)
    missing = [name for name in names if name not in ready]
    if missing:
        raise DeploymentError(f"{', '.join(missing)} is not ready; see `trident status`")
    bundle = read_bundle(state.bundles[0]) if model is None else find_bundle(model, bundles)
    return [ready[name] for name in names], bundle


def settings_in_force(*, given: bool) -> ServingSettings:
    """The settings of the running stack, with the keys of this process's settings; or with `given` addresses, of which
    nothing is known, this process's own.
    """
    ours = load_settings()
    state = None if given else current_stack()
    return ours if state is None else state.settings.model_copy(update={"api_keys": ours.api_keys})


def is_default_version(bundle: Bundle) -> bool:
    """Whether the running stack answers with this bundle when no version is asked for."""
    state = current_stack()
    served = [] if state is None else [path for path in state.bundles if path.parent.name == bundle.manifest.model]
    return bool(served) and served[-1].name == str(bundle.manifest.version)


def parse_url(entry: str) -> Endpoint:
    """`SERVER=URL`, and where it matters the addresses of gRPC, of the metrics and of its container's metrics too:
    `SERVER=URL,HOST:PORT,METRICS_URL,CONTAINER_URL`; what is left empty has its default.

    Raises:
        DeploymentError: it is something else.
    """
    server, _, addresses = entry.partition("=")
    url, grpc, metrics_url, container_url = [*addresses.split(","), "", "", ""][:4]
    if server not in SERVERS or not url.startswith(("http://", "https://")) or addresses.count(",") > 3:
        example = "fastapi=http://127.0.0.1:8000"
        raise DeploymentError(f"--url {entry!r} is not SERVER=URL ({example}); servers are {', '.join(SERVERS)}")
    url = url.rstrip("/")
    return Endpoint(
        server=server,
        url=url,
        grpc=grpc or None,
        metrics_url=metrics_url or f"{url}/metrics",
        container_url=container_url,
    )


def previous_bundle() -> Bundle:
    """What the last rollout of the running stack replaced.

    Raises:
        DeploymentError: no stack runs, or nothing was rolled out.
        BundleError: it is not there any more.
    """
    state = current_stack()
    if state is None:
        raise DeploymentError("no stack is running; start it with `trident up`")
    if state.previous is None:
        raise DeploymentError("nothing was rolled out since `trident up`; there is nothing to go back to")
    return read_bundle(state.previous)
