"""The supervisor: a process of its own that starts the servers, says when they are ready, restarts what dies, and
stops everything.

    python -m serving.stack.supervisor FOLDER SERVER... [--owner-fd N]      (settings by environment)

With an owner, it stops when the other end of the pipe N is closed: also when its owner is killed.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from serving.bundle import Bundle, find_bundle
from serving.clients.golden import TOLERANCE
from serving.clients.http_client import HttpClient
from serving.errors import TridentError
from serving.fastapi_server.launch import plan_fastapi
from serving.processes import adopt_orphans
from serving.server_plan import Endpoint, ServerName, ServerPlan
from serving.settings import ServingSettings, load_settings
from serving.stack.child import Child
from serving.stack.state import ServerState, StackState, log_path, write_state
from serving.torchserve_server.launch import plan_torchserve
from serving.triton_server.launch import plan_triton

PLANNERS: Final[Mapping[ServerName, Callable[[ServingSettings, Sequence[Bundle], Path], ServerPlan]]] = {
    "fastapi": plan_fastapi,
    "torchserve": plan_torchserve,
    "triton": plan_triton,
}
POLL_S: Final = 0.1
MAX_RESTARTS: Final = 5
STABLE_S: Final = 60.0

log = logging.getLogger("trident.supervisor")


class Supervisor:
    """Runs the servers until it is told to stop."""

    def __init__(self, folder: Path, servers: Sequence[ServerName], settings: ServingSettings) -> None:
        self.folder = folder
        self.settings = settings
        if settings.cores:
            os.sched_setaffinity(0, settings.cores)  # inherited by every server
        self.bundles = [find_bundle(reference, settings.bundles) for reference in settings.models or (None,)]
        self.stop = asyncio.Event()
        self.state = StackState(
            pid=os.getpid(),
            process_created=psutil.Process().create_time(),
            settings=settings,
            bundles=[bundle.path for bundle in self.bundles],
            servers={server: ServerState() for server in servers},
        )

    async def run(self) -> None:
        """Until `stop` is set."""
        write_state(self.state, self.folder)
        async with asyncio.TaskGroup() as tasks:
            for server in self.state.servers:
                tasks.create_task(self._keep_running(server))

    async def _keep_running(self, server: ServerName) -> None:
        """Prepare, start, and restart; one server's life."""
        try:
            plan = await asyncio.to_thread(PLANNERS[server], self.settings, self.bundles, self.folder / server)
        except TridentError as error:
            self._note(server, phase="failed", message=error.message)
            await self.stop.wait()
            return
        except Exception as error:  # what we did not foresee must be shown, not lost with this task
            log.exception("%s could not be prepared", server)
            self._note(server, phase="failed", message=f"{type(error).__name__}: {error}")
            await self.stop.wait()
            return
        try:
            while not self.stop.is_set() and await self._one_life(server, plan):
                pass
            await self.stop.wait()
        finally:
            plan.cleanup()
            self._note(server, phase="stopped", pid=None)

    async def _one_life(self, server: ServerName, plan: ServerPlan) -> bool:
        """Start the server, wait until it ends or is to stop. True if it should be started again."""
        restarts = self.state.servers[server].restarts
        phase = "restarting" if restarts else "starting"
        started = time.monotonic()
        plan.before_start()
        child = await Child.start(plan.command, plan.environment, plan.folder, log_path(self.folder, server))
        self._note(server, phase=phase, pid=child.pid, endpoint=plan.endpoint, message="")
        try:
            fault = await self._until_ready(child, plan)
            if fault:
                self._note(server, phase="failed", message=fault)
                return False
            if self.stop.is_set():
                return False
            self._note(server, phase="ready", ready_after_s=round(time.monotonic() - started, 1))
            await _first(child.wait(), self.stop.wait())
            if self.stop.is_set():
                return False
        finally:
            if self.stop.is_set():
                self._note(server, phase="stopping")
            await child.stop(plan.stop_timeout_s)
        restarts = 1 if time.monotonic() - started > STABLE_S else restarts + 1
        message = f"ended with {child.exit_code}"
        if restarts > MAX_RESTARTS:
            self._note(server, phase="failed", message=f"{message}; given up after {MAX_RESTARTS} restarts")
            return False
        self._note(server, phase="restarting", pid=None, restarts=restarts, message=message)
        await _first(asyncio.sleep(min(8.0, 0.25 * 2**restarts)), self.stop.wait())
        return True

    async def _until_ready(self, child: Child, plan: ServerPlan) -> str:
        """Wait for workers and a right answer. Returns what went wrong, or '' (also when it is to stop)."""
        deadline = time.monotonic() + self.settings.start_timeout_s
        last = "it did not answer"
        while not self.stop.is_set():
            if child.exit_code is not None:
                return f"ended with {child.exit_code} while starting"
            try:
                if await asyncio.to_thread(plan.workers_ready):
                    last = await asyncio.to_thread(_canary, plan.endpoint, self.bundles, self.settings.client_key)
                    if not last:
                        return ""
            except (OSError, ValueError) as error:  # not listening yet
                last = str(error)
            if time.monotonic() > deadline:
                return f"not ready after {self.settings.start_timeout_s:.0f} s: {last}"
            await asyncio.sleep(POLL_S)
        return ""

    def _note(self, server: ServerName, **changes: object) -> None:
        self.state.servers[server] = ServerState.model_validate(self.state.servers[server].model_dump() | changes)
        log.info("%s: %s", server, ", ".join(f"{key}={value}" for key, value in changes.items() if key != "endpoint"))
        write_state(self.state, self.folder)


def _canary(endpoint: Endpoint, bundles: Sequence[Bundle], api_key: str | None) -> str:
    """One real prediction per model: '' if the server gives the golden answer, else what is wrong."""
    for bundle in bundles:
        manifest = bundle.manifest
        name, picture = bundle.golden_pictures()[0]
        expected = bundle.golden_probabilities()[0]
        try:
            with HttpClient(endpoint, manifest.model, manifest.version, api_key=api_key) as client:
                top = client.predict(picture).top
        except TridentError as error:
            return error.message
        if abs(top.probability - expected[top.class_id]) > TOLERANCE:
            return f"wrong answer to {name}: {top.label} {top.probability:.4f}, golden {expected[top.class_id]:.4f}"
    return ""


async def _first(*awaitables: object) -> None:
    """Until the first of these is done; the others are cancelled."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _serve(arguments: argparse.Namespace, settings: ServingSettings) -> None:
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(arguments.folder, arguments.servers, settings)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stop.set)
    if arguments.owner_fd is not None:
        loop.add_reader(arguments.owner_fd, supervisor.stop.set)  # readable means closed: nothing is ever written
    await supervisor.run()


def main() -> None:
    """Run the supervisor of one stack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("servers", nargs="+", choices=list(PLANNERS))
    parser.add_argument("--owner-fd", type=int)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = load_settings()
    adopt_orphans()
    asyncio.run(_serve(arguments, settings))


if __name__ == "__main__":
    main()
