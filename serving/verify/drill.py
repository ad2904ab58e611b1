"""Kill the parts of each server under load, and see how long it takes to recover and what is lost (`trident drill`)."""

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
from serving.clients.traffic import Record, Traffic
from serving.settings import ServingSettings
from serving.stack.control import current_stack
from serving.stack.state import ServerState

CLIENTS: Final = 4
_BEFORE_S: Final = 2.0
_QUIET_S: Final = 4.0  # without a failure, it has recovered
_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.05


@dataclass(frozen=True)
class Fault:
    """Which process of a server is killed: the first descendant whose command line has `marker`, or the server itself."""

    server: ServerName
    victim: str
    marker: str | None = None


FAULTS: Final = (
    Fault("fastapi", "a uvicorn worker", "spawn_main"),
    Fault("fastapi", "the service (uvicorn's parent)"),
    Fault("torchserve", "a worker", "model_service_worker"),
    Fault("torchserve", "the JVM"),
    Fault("triton", "a stub (preprocess)", "_preprocess/"),
    Fault("triton", "tritonserver"),
)


@dataclass(frozen=True)
class FaultResult:
    """What one fault cost. `recovered_s`: from the kill to the last failed answer; `whole_s`: until nothing is missing."""

    fault: Fault
    requests: int
    lost: int
    wrong: int
    recovered_s: float
    whole_s: float
    repaired_by: str
    first_loss: str


def drill(folder: Path, bundle: Bundle, settings: ServingSettings) -> Iterator[FaultResult]:
    """Kill one process after the other in the stack that runs in `folder`.

    Raises:
        DeploymentError: the stack ended, a process is not found, or a server did not recover.
    """
    for fault in FAULTS:
        if fault.server in _state(folder):
            yield _kill(folder, fault, bundle, settings)


def _kill(folder: Path, fault: Fault, bundle: Bundle, settings: ServingSettings) -> FaultResult:
    before = _state(folder)[fault.server]
    if before.endpoint is None or before.pid is None:
        raise DeploymentError(f"{fault.server} does not run")
    timeout_s = settings.request_timeout_s + 2
    with Traffic(before.endpoint, [bundle], settings, clients=CLIENTS, timeout_s=timeout_s) as traffic:
        time.sleep(_BEFORE_S)
        killed = time.monotonic()
        os.kill(_victim(fault, before.pid), signal.SIGKILL)
        whole = _until_whole(folder, fault, traffic.record, killed)
    losses = [request for request in traffic.record.failed if request.done > killed]
    after = _state(folder)[fault.server]
    repaired_by = "the server itself"
    if after.restarts > before.restarts or after.pid != before.pid:
        repaired_by = "Trident: restart"
    elif after.mended > before.mended:
        repaired_by = "Trident: model loaded again" if fault.server == "triton" else "Trident: workers scaled"
    return FaultResult(
        fault,
        requests=sum(request.done > killed for request in traffic.record.requests),
        lost=len(losses),
        wrong=len(traffic.record.wrong),
        recovered_s=max((request.done for request in losses), default=killed) - killed,
        whole_s=whole - killed,
        repaired_by=repaired_by,
        first_loss=losses[0].failed if losses else "",
    )


def _until_whole(folder: Path, fault: Fault, record: Record, killed: float) -> float:
    """Wait until the server is ready and nothing has failed for a while. Returns since when it is ready."""
    ready_since = None
    while (now := time.monotonic()) < killed + _TIMEOUT_S:
        state = _state(folder)[fault.server]
        ready_since = (ready_since or now) if state.phase == "ready" else None
        last = max((request.done for request in record.failed[-CLIENTS:]), default=killed)
        if ready_since is not None and now - max(last, ready_since, killed) > _QUIET_S:
            return ready_since if ready_since > killed + _POLL_S else killed
        time.sleep(_POLL_S)
    raise DeploymentError(f"{fault.server} has not recovered within {_TIMEOUT_S:.0f} s from the loss of {fault.victim}")


def _victim(fault: Fault, pid: int) -> int:
    if fault.marker is None:
        return pid
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if any(fault.marker in word for word in child.cmdline()):
                return child.pid
        except psutil.Error:
            continue
    raise DeploymentError(f"{fault.server} has no process of the kind: {fault.victim}")


def _state(folder: Path) -> dict[ServerName, ServerState]:
    state = current_stack(folder)
    if state is None:
        raise DeploymentError(f"the stack has ended; see {folder / 'supervisor.log'}")
    return state.servers
