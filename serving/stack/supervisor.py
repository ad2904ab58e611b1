"""The supervisor: a process of its own that starts the servers, says when they are ready, restarts what dies, and
stops everything.

    python -m serving.stack.supervisor FOLDER SERVER... [--owner-fd N]      (settings by environment)

With an owner, it stops when the other end of the pipe N is closed: also when its owner is killed. On SIGUSR1 it rolls out
the bundle that `rollout.request` in its folder names.
"""

import argparse
import asyncio
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import psutil

from bundle.errors import DeploymentError, TridentError
from bundle.store import Bundle, find_bundle, read_bundle
from serving.clients.endpoint import ServerName
from serving.fastapi_server.launch import plan_fastapi
from serving.processes import adopt_orphans
from serving.servers.server import Care, ServerPlan
from serving.settings import ServingSettings, load_settings
from serving.stack.canary import Canary
from serving.stack.child import Child
from serving.stack.rollout import roll_out
from serving.stack.state import (
    ROLLOUT_REQUEST,
    UP,
    RolloutPhase,
    RolloutState,
    ServerState,
    StackState,
    log_path,
    write_state,
)
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
WATCH_S: Final = 1.0  # how often a server's workers are counted
CANARY_S: Final = 5.0  # how often it is asked a real question
MAX_SILENT: Final = 3  # questions without a right answer, one after another, after which it is started again

Checked = TypeVar("Checked")

log = logging.getLogger("trident.supervisor")


class Supervisor:
    """Runs the servers until it is told to stop."""

    def __init__(self, folder: Path, servers: Sequence[ServerName], settings: ServingSettings) -> None:
        self.folder = folder
        if settings.cores:
            os.sched_setaffinity(0, settings.cores)  # inherited by every server
        self.settings = settings = settings.resolved()  # for readers of the state, whose cores may be others
        self.bundles = [find_bundle(reference, settings.bundles) for reference in settings.models or (None,)]
        self.stop = asyncio.Event()
        self.rollout_asked = asyncio.Event()
        self._plans: dict[ServerName, ServerPlan] = {}
        self._planned: dict[ServerName, list[str]] = {}  # for which bundles
        self._rolling = False
        self._canary: Canary | None = None
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
            rollouts = tasks.create_task(self._roll_out_when_asked())
            for server in self.state.servers:
                tasks.create_task(self._keep_running(server))
            await self.stop.wait()
            rollouts.cancel()

    # --- one server's life

    async def _keep_running(self, server: ServerName) -> None:
        """Prepare, start, and restart."""
        try:
            while not self.stop.is_set() and await self._one_life(server, await self._plan(server)):
                pass
        except TridentError as error:
            self._note(server, phase="failed", message=error.message)
        except Exception as error:  # what we did not foresee must be shown, not lost with this task
            log.exception("%s could not be prepared", server)
            self._note(server, phase="failed", message=f"{type(error).__name__}: {error}")
        try:
            await self.stop.wait()
        finally:
            if server in self._plans:
                self._plans[server].cleanup()
            self._note(server, phase="stopped", pid=None)

    async def _plan(self, server: ServerName) -> ServerPlan:
        """The plan of the last start, or a new one if a rollout has changed what is served since."""
        names = [bundle.name for bundle in self.bundles]
        if self._planned.get(server) != names:
            self._plans[server] = await asyncio.to_thread(
                PLANNERS[server], self.settings, self.bundles, self.folder / server
            )
            self._planned[server] = names
        return self._plans[server]

    async def _one_life(self, server: ServerName, plan: ServerPlan) -> bool:
        """Start the server, wait until it ends or is to stop. True if it should be started again."""
        state = self.state.servers[server]
        was_ready, restarts = state.ready_after_s is not None, state.restarts
        started = time.monotonic()
        plan.before_start()
        child = await Child.start(plan.command, plan.environment, plan.folder, log_path(self.folder, server))
        phase = "restarting" if restarts else "starting"
        self._note(server, phase=phase, pid=child.pid, endpoint=plan.endpoint)
        care = plan.care(child.pid)
        ready_at = math.inf
        try:
            why = await self._until_ready(server, child, plan, care if was_ready else None)
            if why and not was_ready:
                self._note(server, phase="failed", message=why)
                return False
            if not why and not self.stop.is_set():
                ready_at = time.monotonic()
                self._note(server, phase="ready", message="", ready_after_s=round(ready_at - started, 1))
                why = await self._watch(server, child, plan, care)
            if self.stop.is_set():
                return False
        finally:
            if self.stop.is_set():
                self._note(server, phase="stopping")
                await self._drain(server, child, care)
            await child.stop(plan.stop_timeout_s)
        restarts = 1 if time.monotonic() - ready_at > STABLE_S else restarts + 1
        if restarts > MAX_RESTARTS:
            self._note(server, phase="failed", pid=None, message=f"{why}; given up after {MAX_RESTARTS} restarts")
            return False
        self._note(server, phase="restarting", pid=None, restarts=restarts, message=why)
        await _first(asyncio.sleep(min(8.0, 0.125 * 2**restarts)), self.stop.wait())
        return True

    async def _until_ready(self, server: ServerName, child: Child, plan: ServerPlan, care: Care | None) -> str:
        """Wait for workers and a right answer. Returns what went wrong, or '' (also when it is to stop).

        Args:
            care: of a server that was ready before; its clients may be back before it is, so that it is busy at once.
        """
        deadline = time.monotonic() + self.settings.start_timeout_s
        last = "it did not answer"
        while not self.stop.is_set():
            if child.exit_code is not None:
                return f"ended with {child.exit_code} while starting"
            if not self._rolling and self._planned.get(server) != [bundle.name for bundle in self.bundles]:
                return "what is to be served has changed meanwhile"
            try:
                if await self._unless_stopped(plan.workers_ready, False):
                    last = await self._unless_stopped(lambda: self._canary_fault(plan, care), "")
                    if not last:
                        return ""
            except Exception as error:  # it does not listen yet, or breaks off
                last = str(error) or type(error).__name__
            if time.monotonic() > deadline:
                return f"not ready after {self.settings.start_timeout_s:.0f} s: {last}"
            await asyncio.sleep(POLL_S)
        return ""

    async def _watch(self, server: ServerName, child: Child, plan: ServerPlan, care: Care) -> str:
        """Look after a server that was ready, until it ends, is to stop, or cannot be mended. Returns why it is to be
        started again.
        """
        silent, checked, broken_since = 0, time.monotonic(), math.inf
        while True:
            await _first(child.wait(), self.stop.wait(), asyncio.sleep(WATCH_S))
            if child.exit_code is not None:
                return f"ended with {child.exit_code}"
            if self.stop.is_set():
                return ""
            if self._rolling:
                continue
            state = self.state.servers[server]
            broken = await self._try(lambda: care.fault(self.bundles))
            broken_since = min(broken_since, time.monotonic()) if broken else math.inf
            wrong = ""
            if broken or state.phase == "degraded" or time.monotonic() - checked > CANARY_S:
                wrong = await self._try(partial(self._canary_fault, plan, care, broken=bool(broken)))
                checked = time.monotonic()
            silent = silent + 1 if wrong else 0
            if not broken and not wrong:
                if state.phase == "degraded":
                    self._note(server, phase="ready", message="")
                continue
            self._note(server, phase="degraded", message=broken or wrong)
            mended = await self._try(lambda: care.mend(self.bundles))
            if mended:
                self._note(server, message=f"{broken or wrong}: {mended}", mended=state.mended + 1)
            hopeless = time.monotonic() - broken_since > self.settings.start_timeout_s
            if (hopeless or (silent >= MAX_SILENT and not mended)) and child.exit_code is None:
                self._planned.pop(server, None)  # perhaps its files are not what they were: write them again
                return wrong or broken

    def _canary_fault(self, plan: ServerPlan, care: Care | None, *, broken: bool = False) -> str:
        """With its care, the server may be busy."""
        if self._canary is None:
            self._canary = Canary(self.bundles, self.settings)
        if care is None:
            return self._canary.fault(plan.endpoint)
        return self._canary.fault(plan.endpoint, busy_is_well=True, broken=broken, answered=care.answered)

    async def _try(self, check: Callable[[], str]) -> str:
        """What a check says; '' if it cannot be made: no reason to end a server that may be well."""
        try:
            return await self._unless_stopped(check, "")
        except Exception as error:
            log.warning("a check failed: %r", error)
            return ""

    async def _unless_stopped(self, check: Callable[[], Checked], otherwise: Checked) -> Checked:
        """What a blocking call returns, or `otherwise` if the stack is to stop first: then it ends by itself, with the
        server.
        """
        checking = asyncio.ensure_future(asyncio.to_thread(check))
        await _first(asyncio.wait((checking,)), self.stop.wait())
        if checking.done():
            return checking.result()
        checking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return otherwise

    async def _drain(self, server: ServerName, child: Child, care: Care) -> None:
        """Give the server the time to answer what it took."""
        if child.exit_code is None and self.state.servers[server].ready_after_s is not None:
            try:
                await asyncio.to_thread(care.drain, self.bundles)
            except (TridentError, OSError, ValueError) as error:
                log.warning("%s is stopped without draining: %s", server, error)

    # --- rollouts

    async def _roll_out_when_asked(self) -> None:
        while True:
            await self.rollout_asked.wait()
            self.rollout_asked.clear()
            try:
                request = (self.folder / ROLLOUT_REQUEST).read_text()
            except OSError as error:  # anybody may send a signal
                log.warning("told to roll out, but not what: %s", error)
                continue
            await self._roll_out(Path(request))

    async def _roll_out(self, path: Path) -> None:
        """Replace the version of a model that is served by the bundle in `path`."""
        number = self.state.rollout.number + 1 if self.state.rollout else 1
        self._note_rollout(RolloutState(number=number, bundle=path))
        loop = asyncio.get_running_loop()

        def on_phase(phase: RolloutPhase) -> None:
            loop.call_soon_threadsafe(lambda: self._change_rollout({"phase": phase}))

        def on_step(server: ServerName, step: str) -> None:
            loop.call_soon_threadsafe(lambda: self._change_rollout({}, {server: step}))

        try:
            new = read_bundle(path)
            old = self._replaced_by(new)
        except TridentError as error:
            self._change_rollout({"phase": "refused", "message": error.message})
            return
        self._rolling = True
        try:
            await asyncio.to_thread(roll_out, self._plans, old, new, self.settings, on_phase, on_step)
        except TridentError as error:
            self._planned.clear()  # who starts again writes its files again: nothing of the new version must be left
            self._change_rollout({"phase": "refused", "message": error.message})
        except Exception as error:
            log.exception("the rollout of %s failed", path)
            self._planned.clear()
            self._change_rollout({"phase": "refused", "message": f"{type(error).__name__}: {error}"})
        else:
            self.bundles = [new if bundle is old else bundle for bundle in self.bundles]
            self.state.bundles = [bundle.path for bundle in self.bundles]
            self.state.previous = old.path
            self._canary = None
            await asyncio.sleep(0)  # the last steps
            self._change_rollout({"phase": "done"})
        finally:
            self._rolling = False

    def _replaced_by(self, new: Bundle) -> Bundle:
        down = [server for server, state in self.state.servers.items() if state.phase not in UP]
        if down:
            raise DeploymentError(f"{', '.join(down)} is not ready; see `trident status`")
        if any(bundle.manifest == new.manifest for bundle in self.bundles):
            raise DeploymentError(f"{new.name} is served already")
        served = [bundle for bundle in self.bundles if bundle.manifest.model == new.manifest.model]
        if not served:
            names = ", ".join(bundle.name for bundle in self.bundles)
            raise DeploymentError(f"{new.name} is no version of what is served ({names}); start it with `trident up`")
        if any(bundle.manifest.version == new.manifest.version for bundle in served):
            raise DeploymentError(f"another {new.name} is served already; export under a new version")
        return served[-1]

    def _change_rollout(self, changes: dict[str, object], steps: dict[ServerName, str] | None = None) -> None:
        assert self.state.rollout is not None
        merged = self.state.rollout.steps | (steps or {})
        self._note_rollout(self.state.rollout.model_copy(update={**changes, "steps": merged}))

    def _note_rollout(self, rollout: RolloutState) -> None:
        self.state.rollout = rollout
        log.info("rollout of %s: %s %s %s", rollout.bundle, rollout.phase, rollout.steps, rollout.message)
        self._write_state()

    def _note(self, server: ServerName, **changes: object) -> None:
        self.state.servers[server] = ServerState.model_validate(self.state.servers[server].model_dump() | changes)
        log.info("%s: %s", server, ", ".join(f"{key}={value}" for key, value in changes.items() if key != "endpoint"))
        self._write_state()

    def _write_state(self) -> None:
        try:
            write_state(self.state, self.folder)
        except OSError as error:  # a full disk must not end what runs; the next change is written again
            log.warning("the state could not be written: %s", error)


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
    loop.add_signal_handler(signal.SIGUSR1, supervisor.rollout_asked.set)
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
