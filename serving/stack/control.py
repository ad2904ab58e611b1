"""Start, find and stop the stack: what the command line calls. The supervisor is another process."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from bundle.atomic_file import atomic_write
from bundle.errors import DeploymentError
from bundle.store import Bundle
from serving.clients.endpoint import SERVERS, ServerName
from serving.deployment import Deployment
from serving.runtimes import check_deployable
from serving.scratch import remove_scratch
from serving.settings import ServingSettings
from serving.stack.ports import check_ports_free, free_ports
from serving.stack.state import ROLLOUT_REQUEST, STACK, RolloutState, StackState, log_path, read_state
from serving.stack.timing import SupervisionTiming

OnChange = Callable[[StackState], None]
_STOP_TIMEOUT_S: Final = 60.0  # plus three times `request_timeout_s`: to drain and to exit
_POLL_S: Final = 0.05


def current_stack(folder: Path = STACK) -> StackState | None:
    """The state of the stack that runs in `folder`, or None."""
    state = read_state(folder)
    return state if state is not None and _supervisor(state) is not None else None


def start_stack(
    settings: ServingSettings,
    servers: Sequence[ServerName],
    folder: Path = STACK,
    *,
    deployment: Deployment | None = None,
    choose_ports: bool = False,
    owned: bool = False,
    timing: SupervisionTiming | None = None,
    on_change: OnChange = lambda _: None,
) -> StackState:
    """Start the servers. Returns when all are ready.

    Args:
        deployment: what the settings name, if the caller has read it already.
        choose_ports: take free ports instead of those in `settings`.
        owned: the stack stops when this process ends, however that happens.
        timing: of the supervision; default: `SupervisionTiming()`.
        on_change: called with every new state.

    Raises:
        DeploymentError: a stack runs already, a port is taken, or a server did not become ready. Nothing is left running.
        BundleError: a bundle is missing or damaged, or has no file for the settings' runtime and precision.
    """
    if settings.is_exposed and not settings.api_keys and not settings.trust_network:
        raise DeploymentError(
            f"host = {settings.host} can be reached by other machines: set api_keys, or trust_network if a proxy checks keys"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with _starting(folder):
        running = current_stack(folder)
        if running is not None:
            raise DeploymentError(f"a stack runs already ({', '.join(running.servers)}); stop it with `trident down`")
        deployment = deployment or Deployment.of(settings)
        for bundle in deployment:
            check_deployable(bundle, settings)  # a fault is an error here, not in the log
        settings = deployment.settings_for_children(settings)
        if choose_ports:
            settings = settings.model_copy(update={"ports": free_ports()})
        check_ports_free(servers, settings.ports, settings.host)
        for server in servers:
            log_path(folder, server).unlink(missing_ok=True)
        (folder / "state.json").unlink(missing_ok=True)
        process = _spawn_supervisor(settings, servers, folder, deployment=deployment, owned=owned, timing=timing)
        try:
            state = _until_ready(process, folder, on_change)
            if not state.ready:
                raise DeploymentError(_failure_message(state, folder))
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        return state


def stop_stack(folder: Path = STACK, on_change: OnChange = lambda _: None) -> bool:
    """Stop the stack, and wait until every process is gone. Removes what a killed stack left. False if none was running.

    Raises:
        DeploymentError: the supervisor does not stop.
    """
    state = current_stack(folder)
    supervisor = _supervisor(state) if state is not None else None
    if supervisor is None:
        for server in SERVERS:
            remove_scratch(folder / server)
        return False
    supervisor.send_signal(signal.SIGTERM)
    assert state is not None
    timeout_s = _STOP_TIMEOUT_S + 3 * state.settings.request_timeout_s
    deadline = time.monotonic() + timeout_s
    last = None
    while supervisor.is_running() and supervisor.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            raise DeploymentError(f"the supervisor (pid {supervisor.pid}) has not stopped within {timeout_s:.0f} s")
        state = read_state(folder)
        if state is not None and state != last:
            on_change(state)
            last = state
        time.sleep(_POLL_S)
    for process in [process for process in _spawned if process.pid == supervisor.pid]:
        process.wait()
        _spawned.remove(process)
    return True


def roll_out_bundle(bundle: Bundle, folder: Path = STACK, on_change: OnChange = lambda _: None) -> RolloutState:
    """Replace the served version of a model on all running servers. Returns when that is done or refused.

    Raises:
        DeploymentError: no stack runs, it ended meanwhile, or another rollout is in progress.
    """
    with _starting(folder):
        state = current_stack(folder)
        if state is None:
            raise DeploymentError("no stack is running; start it with `trident up`")
        before = state.rollout.number if state.rollout is not None else 0
        atomic_write(folder / ROLLOUT_REQUEST, str(bundle.path))
        os.kill(state.pid, signal.SIGUSR1)
        last = None
        while True:
            state = current_stack(folder)
            if state is None:
                raise DeploymentError(f"the stack ended during the rollout; see {folder / 'supervisor.log'}")
            rollout = state.rollout
            if rollout is not None and rollout.number > before:
                if state != last:
                    on_change(state)
                    last = state
                if rollout.finished:
                    return rollout
            time.sleep(_POLL_S)


@contextmanager
def running_stack(
    settings: ServingSettings,
    servers: Sequence[ServerName],
    folder: Path = STACK,
    on_change: OnChange = lambda _: None,
    timing: SupervisionTiming | None = None,
    deployment: Deployment | None = None,
) -> Iterator[StackState]:
    """A stack on free ports for the duration of a block. It also stops when this process ends."""
    state = start_stack(
        settings,
        servers,
        folder,
        deployment=deployment,
        choose_ports=True,
        owned=True,
        timing=timing,
        on_change=on_change,
    )
    try:
        yield state
    finally:
        stop_stack(folder)


_owner_pipes: Final[list[int]] = []  # write ends, open while this process lives
_spawned: Final[list[subprocess.Popen[bytes]]] = []  # the supervisors that this process started


def _spawn_supervisor(
    settings: ServingSettings,
    servers: Sequence[ServerName],
    folder: Path,
    *,
    deployment: Deployment,
    owned: bool,
    timing: SupervisionTiming | None,
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "serving.stack.supervisor", str(folder.resolve()), *servers]
    if timing is not None:
        command += ["--timing", timing.model_dump_json()]
    inherited: tuple[int, ...] = ()
    if owned:
        read_end, write_end = os.pipe()
        _owner_pipes.append(write_end)
        command += ["--owner-fd", str(read_end)]
        inherited = (read_end,)
    with (folder / "supervisor.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**settings.child_environment(), **deployment.environment()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=inherited,
        )
    for descriptor in inherited:
        os.close(descriptor)
    _spawned.append(process)
    return process


def _until_ready(process: subprocess.Popen[bytes], folder: Path, on_change: OnChange) -> StackState:
    last: StackState | None = None
    while True:
        ended = process.poll() is not None
        state = read_state(folder)
        if state is not None and state != last:
            on_change(state)
            last = state
            if state.ready or any(server.phase == "failed" for server in state.servers.values()):
                return state
        if ended:
            raise DeploymentError(f"the supervisor ended while starting:\n{_tail(folder / 'supervisor.log')}")
        time.sleep(_POLL_S)


def _failure_message(state: StackState, folder: Path) -> str:
    parts = []
    for name, server in state.servers.items():
        if server.phase == "failed":
            log = log_path(folder, name)
            tail = _tail(log)
            parts.append(f"{name} failed: {server.message}" + (f"\nthe last lines of {log}:\n{tail}" if tail else ""))
    return "\n".join(parts)


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(f"    {line}" for line in path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _supervisor(state: StackState) -> psutil.Process | None:
    """The supervisor's process, if it is alive and its pid was not reused."""
    try:
        process = psutil.Process(state.pid)
        same = abs(process.create_time() - state.process_created) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


@contextmanager
def _starting(folder: Path) -> Iterator[None]:
    """Lock the folder: only one start or rollout at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DeploymentError("another `trident` process is starting the stack or rolling out") from error
        yield
