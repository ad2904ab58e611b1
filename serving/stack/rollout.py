"""A new version on all running servers, without a request that fails or is answered half by the old one.

On every server: load beside the old version; ask for every golden answer over every protocol; then, only if all of them
are right everywhere, switch, and unload the old version when it has answered what it took. If anything is wrong before
or at the switch, the old version goes on answering everywhere, and the new one is unloaded.
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
from serving.runtimes import artefact_for
from serving.servers.server import ServerPlan
from serving.settings import ServingSettings
from serving.stack.canary import Canary
from serving.stack.state import RolloutPhase

log = logging.getLogger("trident.rollout")

Plans = Mapping[ServerName, ServerPlan]
OnPhase = Callable[[RolloutPhase], None]
OnStep = Callable[[ServerName, str], None]


def roll_out(
    plans: Plans, old: Bundle, new: Bundle, settings: ServingSettings, on_phase: OnPhase, on_step: OnStep
) -> None:
    """Replace `old` by `new` on the servers of `plans`, which all run.

    Raises:
        DeploymentError: it was refused; every server answers by `old`.
    """
    canary = Canary([new], settings)
    try:
        on_phase("loading")
        _everywhere(plans, on_step, "loaded", lambda _, plan: plan.versions.load(new))
        on_phase("verifying")
        _everywhere(plans, on_step, "verified", lambda server, plan: _verify(server, plan, new, settings))
    except DeploymentError:
        _drop(plans, new)
        raise
    on_phase("switching")
    switched: list[ServerName] = []
    try:
        for server, plan in plans.items():
            switched.append(server)
            plan.versions.make_default(new)
            fault = canary.fault(plan.endpoint, busy_is_well=True, broken=True)
            if fault:
                raise DeploymentError(f"{server}, after the switch: {fault}")
            on_step(server, "switched")
    except (TridentError, OSError) as error:
        for server in switched:
            with suppress(TridentError, OSError):
                plans[server].versions.make_default(old)
        _drop(plans, new)
        raise DeploymentError(str(error)) from error
    on_phase("unloading")
    for server, plan in plans.items():
        try:
            plan.versions.unload(old)
            on_step(server, "done")
        except (TridentError, OSError) as error:  # the switch stands; the old version only takes memory
            log.warning("%s still holds %s: %s", server, old.name, error)
            on_step(server, f"done, but {old.name} is still loaded: {error}")


def _everywhere(plans: Plans, on_step: OnStep, done: str, step: Callable[[ServerName, ServerPlan], None]) -> None:
    """Do one step on all servers at once.

    Raises:
        DeploymentError: what failed, on every server where something did.
    """

    def attempt(server: ServerName) -> str:
        try:
            step(server, plans[server])
        except Exception as error:  # also what nobody foresaw must not leave the new version half loaded
            log.warning("%s: %r", server, error)
            on_step(server, f"failed: {error}")
            return f"{server}: {error or type(error).__name__}"
        on_step(server, done)
        return ""

    with ThreadPoolExecutor(len(plans)) as pool:
        faults = [fault for fault in pool.map(attempt, plans) if fault]
    if faults:
        raise DeploymentError("; ".join(faults))


def _verify(server: ServerName, plan: ServerPlan, bundle: Bundle, settings: ServingSettings) -> None:
    manifest = bundle.manifest
    tolerance = artefact_for(bundle, settings.runtime, settings.precision).tolerance
    for protocol in plan.endpoint.protocols:
        key = settings.client_key
        with connect(plan.endpoint, manifest.model, manifest.version, protocol=protocol, api_key=key) as client:
            result = check_golden(client, bundle, tolerance)
        if not result.agrees:
            more = f" (and {len(result.faults) - 1} more)" if len(result.faults) > 1 else ""
            raise DeploymentError(f"{protocol}: {result.faults[0]}{more}")


def _drop(plans: Plans, bundle: Bundle) -> None:
    for server, plan in plans.items():
        try:
            plan.versions.unload(bundle)
        except (TridentError, OSError) as error:  # where it was not even loaded
            log.info("%s: %s is not dropped: %s", server, bundle.name, error)
