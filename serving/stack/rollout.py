"""A new version of a model on all running servers, without a failed request and without an answer that mixes versions.

On every server: load the new version beside the old one, and check every golden answer over every protocol. Only if all
of them are right everywhere: switch, wait until the old version has answered what it accepted, and unload it. If
anything fails before or at the switch, the old version stays the default everywhere, and the new one is unloaded.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from bundle.errors import DeploymentError, TridentError
from bundle.store import Bundle
from serving.clients.connect import connect
from serving.clients.endpoint import ServerName
from serving.clients.golden import check_golden
from serving.deployment import Deployment
from serving.runtimes import artefact_for
from serving.servers.server import Server
from serving.settings import ServingSettings
from serving.stack.canary import Canary
from serving.stack.state import RolloutPhase

log = logging.getLogger("trident.rollout")

Servers = Mapping[ServerName, Server]
OnPhase = Callable[[RolloutPhase], None]
OnStep = Callable[[ServerName, str], None]


def roll_out(
    servers: Servers, old: Bundle, new: Bundle, settings: ServingSettings, on_phase: OnPhase, on_step: OnStep
) -> None:
    """Replace `old` by `new` on the servers, which all run.

    Raises:
        DeploymentError: it was refused; every server answers by `old`.
    """
    canary = Canary(Deployment((new,)), settings)
    try:
        on_phase("loading")
        _on_all(servers, on_step, "loaded", lambda server: server.load(new))
        on_phase("verifying")
        _on_all(servers, on_step, "verified", lambda server: _verify(server, new, settings))
    except DeploymentError:
        _drop(servers, new)
        raise
    on_phase("switching")
    switched: list[Server] = []
    try:
        for name, server in servers.items():
            switched.append(server)
            server.make_default(new)
            fault = canary.fault_under_load(server, refusal_is_known=True)
            if fault is not None:
                raise DeploymentError(f"{name}, after the switch: {fault}")
            on_step(name, "switched")
    except (TridentError, OSError) as error:
        for server in switched:
            with suppress(TridentError, OSError):
                server.make_default(old)
        _drop(servers, new)
        raise DeploymentError(str(error)) from error
    on_phase("unloading")
    for name, server in servers.items():
        try:
            server.unload(old)
            on_step(name, "done")
        except (TridentError, OSError) as error:  # the switch is kept; the old version only takes memory
            log.warning("%s still holds %s: %s", name, old.name, error)
            on_step(name, f"done, but {old.name} is still loaded: {error}")


def _on_all(servers: Servers, on_step: OnStep, done: str, step: Callable[[Server], None]) -> None:
    """Do one step on all servers at once.

    Raises:
        DeploymentError: the faults of all servers where the step failed.
    """

    def attempt(name: ServerName) -> str | None:
        try:
            step(servers[name])
        except Exception as error:  # an unforeseen error must not leave the new version half loaded either
            log.warning("%s: %r", name, error)
            on_step(name, f"failed: {error}")
            return f"{name}: {error or type(error).__name__}"
        on_step(name, done)
        return None

    with ThreadPoolExecutor(len(servers)) as pool:
        faults = [fault for fault in pool.map(attempt, servers) if fault is not None]
    if faults:
        raise DeploymentError("; ".join(faults))


def _verify(server: Server, bundle: Bundle, settings: ServingSettings) -> None:
    manifest, key = bundle.manifest, settings.client_key
    tolerance = artefact_for(bundle, settings.runtime, settings.precision).tolerance
    for protocol in server.endpoint.protocols:
        with connect(server.endpoint, manifest.model, manifest.version, protocol=protocol, api_key=key) as client:
            result = check_golden(client, bundle, tolerance)
        if not result.agrees:
            raise DeploymentError(f"{protocol}: {result.summary}")


def _drop(servers: Servers, bundle: Bundle) -> None:
    for name, server in servers.items():
        try:
            server.unload(bundle)
        except (TridentError, OSError) as error:  # where it was not even loaded
            log.info("%s: %s is not dropped: %s", name, bundle.name, error)
