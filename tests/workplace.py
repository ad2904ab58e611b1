"""A folder in which `trident` is run as its user runs it, and what it may leave behind (nothing)."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from bundle.store import Bundle, read_bundle
from serving.clients.endpoint import SERVERS, Endpoint, ServerName
from serving.scratch import scratch_name
from serving.stack.control import current_stack
from serving.stack.state import ServerState, StackState
from serving.triton_server.control import ADMIN_HEADER
from tests.waiting import wait_until

TRIDENT = Path(sys.executable).with_name("trident")

# The fixture `run`: a command in this process, in the folder `cwd`; its exit code, and all that it printed.
Run = Callable[..., tuple[int, str]]


def trident(
    *arguments: str, cwd: Path, timeout: float = 180, check: bool = False, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    environment = os.environ | dict(env or {})
    done = subprocess.run(
        [TRIDENT, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def bundle_as(version: int, bundle: Bundle, root: Path) -> Bundle:
    """A copy of a bundle under another version number."""
    copy = Path(shutil.copytree(bundle.path, root / bundle.manifest.model / str(version)))
    manifest = json.loads((copy / "manifest.json").read_text()) | {"version": version}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return read_bundle(copy)


def now(folder: Path) -> StackState:
    """The stack that runs in a working folder."""
    state = current_stack(folder / "artifacts" / "stack")
    assert state is not None
    return state


def endpoint_of(state: StackState, server: ServerName) -> Endpoint:
    """Where a server of a running stack answers."""
    endpoint = state.servers[server].endpoint
    assert endpoint is not None
    return endpoint


def until_ready(
    folder: Path, server: ServerName, also: Callable[[ServerState], bool] = lambda _: True, timeout_s: float = 120
) -> ServerState:
    """Wait until a server of the stack is ready and `also` holds; its state then."""

    def state() -> ServerState:
        return now(folder).servers[server]

    return wait_until(
        lambda: found if (found := state()).phase == "ready" and also(found) else None, timeout_s, shown=state
    )


def triton_admin(pid: int) -> dict[str, str]:
    """The header with which the supervisor changes what a Triton serves, from that server's command line."""
    (flag,) = [word for word in psutil.Process(pid).cmdline() if "http-restricted" in word and ADMIN_HEADER in word]
    return {ADMIN_HEADER: flag.rpartition("=")[2]}


def processes_of(folder: Path) -> list[str]:
    """The living processes that work in or below `folder`, or were started with its path."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and (
                Path(process.cwd()).is_relative_to(folder) or any(str(folder) in argument for argument in line)
            ):
                found.append(f"{process.pid}: {' '.join(line)[:150]}")
        except (psutil.Error, OSError):
            continue
    return [entry for entry in found if not entry.startswith(f"{os.getpid()}:")]


def leftovers() -> set[str]:
    """Trident's shared memory and temporary folders on this machine."""
    shared = {path.name for path in Path("/dev/shm").glob("trident_*")}
    return shared | {path.name for path in Path(tempfile.gettempdir()).glob("trident_*")}


def leftovers_of(folder: Path) -> list[str]:
    """Shared memory and temporary folders of the stack in a working folder."""
    names = [scratch_name(folder / "artifacts" / "stack" / server) for server in SERVERS]
    return [name for name in sorted(leftovers()) if name.startswith(tuple(names))]
