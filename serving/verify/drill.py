"""`trident drill`: kill the processes of each server under load; measure how long it takes to recover, and what is lost."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from bundle.errors import DeploymentError
from bundle.store import Bundle
from serving.clients.endpoint import ServerName
from serving.clients.traffic import Traffic, TrafficRecord
from serving.runtimes import artefact_for
from serving.servers.server import KillTarget, server_class
from serving.settings import ServingSettings
from serving.stack.control import current_stack
from serving.stack.state import ServerState

CLIENTS: Final = 4
_BEFORE_S: Final = 2.0
_QUIET_S: Final = 4.0  # without a failure: it has recovered
_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.05


@dataclass(frozen=True)
class FaultResult:
    """The cost of killing one process.

    Args:
        requests, lost, wrong: since the kill.
        recovered_s: from the kill to the last failed request.
        complete_s: from the kill until every process is back.
        first_loss: the first failed request's error; None if nothing was lost.
    """

    server: ServerName
    killed: str
    requests: int
    lost: int
    wrong: int
    recovered_s: float
    complete_s: float
    repaired_by: str
    first_loss: str | None


def drill(folder: Path, bundle: Bundle, settings: ServingSettings) -> Iterator[FaultResult]:
    """Kill one process after the other in the stack that runs in `folder`.

    Raises:
        DeploymentError: the stack ended, a process is not found, or a server did not recover.
    """
    for name in _states(folder):
        for target in server_class(name).kill_targets:
            yield _kill(folder, name, target, bundle, settings)


def _kill(folder: Path, name: ServerName, target: KillTarget, bundle: Bundle, settings: ServingSettings) -> FaultResult:
    before = _states(folder)[name]
    if before.endpoint is None or before.pid is None:
        raise DeploymentError(f"{name} does not run")
    traffic = Traffic(
        before.endpoint,
        [bundle],
        artefact_for(bundle, settings.runtime, settings.precision).tolerance,
        api_key=settings.client_key,
        clients=CLIENTS,
        timeout_s=settings.request_timeout_s + 2,
    )
    with traffic:
        time.sleep(_BEFORE_S)
        killed = time.monotonic()
        os.kill(_find(name, target, before.pid), signal.SIGKILL)
        complete = _until_complete(folder, name, target, traffic.record, killed)
    losses = [request for request in traffic.record.failed if request.done > killed]
    return FaultResult(
        name,
        target.description,
        requests=sum(request.done > killed for request in traffic.record.requests),
        lost=len(losses),
        wrong=len(traffic.record.wrong),
        recovered_s=max((request.done for request in losses), default=killed) - killed,
        complete_s=complete - killed,
        repaired_by=_repaired_by(name, before, _states(folder)[name]),
        first_loss=str(losses[0].fault) if losses else None,
    )


def _repaired_by(name: ServerName, before: ServerState, after: ServerState) -> str:
    if after.restarts > before.restarts or after.pid != before.pid:
        return "Trident: restart"
    return server_class(name).repair_description if after.repairs > before.repairs else "the server itself"


def _until_complete(folder: Path, name: ServerName, target: KillTarget, record: TrafficRecord, killed: float) -> float:
    """Wait until the server is ready and no request has failed for a while. Returns since when it is ready."""
    ready_since = None
    while (now := time.monotonic()) < killed + _TIMEOUT_S:
        ready_since = (ready_since or now) if _states(folder)[name].phase == "ready" else None
        last_failure = max((request.done for request in record.failed[-CLIENTS:]), default=killed)
        if ready_since is not None and now - max(last_failure, ready_since, killed) > _QUIET_S:
            return ready_since if ready_since > killed + _POLL_S else killed
        time.sleep(_POLL_S)
    raise DeploymentError(f"{name} has not recovered within {_TIMEOUT_S:.0f} s from the loss of {target.description}")


def _find(name: ServerName, target: KillTarget, pid: int) -> int:
    if target.marker is None:
        return pid
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if any(target.marker in word for word in child.cmdline()):
                return child.pid
        except psutil.Error:
            continue
    raise DeploymentError(f"{name} has no such process: {target.description}")


def _states(folder: Path) -> dict[ServerName, ServerState]:
    state = current_stack(folder)
    if state is None:
        raise DeploymentError(f"the stack has ended; see {folder / 'supervisor.log'}")
    return state.servers
