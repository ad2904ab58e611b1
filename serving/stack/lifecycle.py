"""The life of one supervised server: prepare, start, wait until it is ready, watch, repair, restart, stop."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from bundle.errors import TridentError
from bundle.golden import Fault
from serving.clients.endpoint import ServerName
from serving.deployment import Deployment
from serving.servers.server import Server
from serving.settings import ServingSettings
from serving.stack.canary import Canary
from serving.stack.child import Child
from serving.stack.reaper import Reaper
from serving.stack.state import ServerState
from serving.stack.timing import SupervisionTiming

Checked = TypeVar("Checked")

log = logging.getLogger("trident.supervisor")


class Stack(Protocol):
    """What a server's life needs of its supervisor."""

    settings: ServingSettings
    timing: SupervisionTiming
    stop: asyncio.Event
    rolling_out: bool
    reaper: Reaper
    deployment: Deployment  # changes with every rollout
    canary: Canary  # golden requests for the deployment

    def state_of(self, name: ServerName) -> ServerState:
        """The server's public state."""

    def note(self, name: ServerName, **changes: object) -> None:
        """Change the server's public state."""

    def log_path(self, name: ServerName) -> Path:
        """The file that the server's output goes to."""


@dataclass
class Lifecycle:
    """One server. `run` returns when the stack stops."""

    server: Server
    stack: Stack
    _prepared_for: str | None = field(default=None, init=False)

    @property
    def name(self) -> ServerName:
        """The server's name."""
        return self.server.name

    async def run(self) -> None:
        """Start the server, and start it again whenever it must be, until the stack stops."""
        try:
            while not self.stack.stop.is_set() and await self._one_life():
                pass
        except TridentError as error:
            self.stack.note(self.name, phase="failed", message=error.message)
        except Exception as error:  # an unforeseen error must be shown, not lost with this task
            log.exception("%s could not be prepared", self.name)
            self.stack.note(self.name, phase="failed", message=f"{type(error).__name__}: {error}")
        try:
            await self.stack.stop.wait()
        finally:
            self.server.cleanup()
            self.stack.note(self.name, phase="stopped", pid=None)

    def prepare_again(self) -> None:
        """Write the configuration again before the next start."""
        self._prepared_for = None

    async def _prepare(self) -> None:
        deployment = self.stack.deployment
        if self._prepared_for != deployment.names:
            self.server.deployment = deployment
            await asyncio.to_thread(self.server.prepare)
            self._prepared_for = deployment.names

    async def _one_life(self) -> bool:
        """Start the server, and wait until it ends or has to stop. True if it should be started again."""
        stack, name, server = self.stack, self.name, self.server
        state = stack.state_of(name)
        was_ready, restarts = state.ready_after_s is not None, state.restarts
        await self._prepare()
        started = time.monotonic()
        command = await asyncio.to_thread(server.start_command)
        child = await Child.start(command.argv, command.environment, command.folder, stack.log_path(name))
        stack.reaper.watch(child.pid)
        server.started(child.pid)
        stack.note(name, phase="restarting" if restarts else "starting", pid=child.pid, endpoint=server.endpoint)
        ready_at = math.inf
        try:
            why = await self._until_ready(child, was_ready=was_ready)
            if why and not was_ready:
                stack.note(name, phase="failed", message=why)
                return False
            if not why and not stack.stop.is_set():
                ready_at = time.monotonic()
                stack.note(name, phase="ready", message="", ready_after_s=round(ready_at - started, 1))
                why = await self._watch(child)
            if stack.stop.is_set():
                return False
        finally:
            if stack.stop.is_set():
                stack.note(name, phase="stopping")
                await self._drain(child)
            await child.stop(server.stop_timeout_s)
            stack.reaper.forget(child.pid)
        return await self._should_restart(why, restarts, ready_at)

    async def _should_restart(self, why: str | None, restarts: int, ready_at: float) -> bool:
        """Note the restart and pause before it; or give up."""
        timing = self.stack.timing
        restarts = 1 if time.monotonic() - ready_at > timing.stable_s else restarts + 1
        if restarts > timing.max_restarts:
            message = f"{why}; given up after {timing.max_restarts} restarts"
            self.stack.note(self.name, phase="failed", pid=None, message=message)
            return False
        self.stack.note(self.name, phase="restarting", pid=None, restarts=restarts, message=why or "")
        delay_s = min(timing.max_restart_delay_s, timing.restart_delay_s * 2 ** (restarts - 1))
        await first_of(asyncio.sleep(delay_s), self.stack.stop.wait())
        return True

    async def _until_ready(self, child: Child, *, was_ready: bool) -> str | None:
        """Wait until workers are up and golden answers come. Returns what went wrong; None also if the stack stops.

        Args:
            was_ready: clients of a server that was ready before may return at once, so that it is overloaded from the start.
        """
        stack = self.stack
        deadline = time.monotonic() + stack.settings.start_timeout_s
        last = "it did not answer"
        while not stack.stop.is_set():
            if child.exit_code is not None:
                return f"exited with {child.exit_code} while starting"
            if not stack.rolling_out and self._prepared_for != stack.deployment.names:
                return "the deployment has changed meanwhile"
            check = stack.canary.fault_under_load if was_ready else stack.canary.fault
            try:
                if await self._unless_stopped(self.server.is_up, False):
                    fault = await self._unless_stopped(partial(check, self.server), None)
                    if fault is None:
                        return None
                    last = fault.message
            except Exception as error:  # it does not listen yet, or drops the connection
                last = str(error) or type(error).__name__
            if time.monotonic() > deadline:
                return f"not ready after {stack.settings.start_timeout_s:.0f} s: {last}"
            await asyncio.sleep(stack.timing.poll_s)
        return None

    async def _watch(self, child: Child) -> str | None:
        """Watch a server that was ready, until it ends, the stack stops, or it cannot be repaired. Returns why it must be
        started again.
        """
        stack, timing = self.stack, self.stack.timing
        failed_canaries, checked, broken_since = 0, time.monotonic(), math.inf
        while True:
            await first_of(child.wait(), stack.stop.wait(), asyncio.sleep(timing.watch_s))
            if child.exit_code is not None:
                return f"exited with {child.exit_code}"
            if stack.stop.is_set():
                return None
            if stack.rolling_out:
                continue
            state = stack.state_of(self.name)
            broken = await self._attempt(self.server.probe)
            broken_since = min(broken_since, time.monotonic()) if broken else math.inf
            wrong: Fault | None = None
            if broken or state.phase == "degraded" or time.monotonic() - checked > timing.canary_s:
                check = partial(stack.canary.fault_under_load, self.server, refusal_is_known=broken is not None)
                wrong = await self._attempt(check)
                checked = time.monotonic()
            failed_canaries = failed_canaries + 1 if wrong else 0
            fault = broken or wrong
            if fault is None:
                if state.phase == "degraded":
                    stack.note(self.name, phase="ready", message="")
                continue
            stack.note(self.name, phase="degraded", message=fault.message)
            repaired = await self._attempt(self.server.repair)
            if repaired:
                stack.note(self.name, message=f"{fault.message}: {repaired}", repairs=state.repairs + 1)
            not_repaired = time.monotonic() - broken_since > stack.settings.start_timeout_s
            unresponsive = failed_canaries >= timing.max_failed_canaries and not repaired
            if (not_repaired or unresponsive) and child.exit_code is None:
                self.prepare_again()  # its files may have been damaged
                return (wrong or fault).message

    async def _drain(self, child: Child) -> None:
        """Give the server the time to answer what it has accepted."""
        if child.exit_code is None and self.stack.state_of(self.name).ready_after_s is not None:
            try:
                await asyncio.to_thread(self.server.drain)
            except (TridentError, OSError, ValueError) as error:
                log.warning("%s is stopped without draining: %s", self.name, error)

    async def _attempt(self, check: Callable[[], Checked | None]) -> Checked | None:
        """A check's result; None if it cannot be made, which is no reason to end a server that may be healthy."""
        try:
            return await self._unless_stopped(check, None)
        except Exception as error:
            log.warning("a check of %s failed: %r", self.name, error)
            return None

    async def _unless_stopped(self, check: Callable[[], Checked], otherwise: Checked) -> Checked:
        """The result of a blocking call, or `otherwise` if the stack stops first. The call then ends with the server."""
        checking = asyncio.ensure_future(asyncio.to_thread(check))
        await first_of(asyncio.wait((checking,)), self.stack.stop.wait())
        if checking.done():
            return checking.result()
        checking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return otherwise


async def first_of(*awaitables: object) -> None:
    """Wait for the first of these; cancel the others."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
