"""One server as a process group. It cannot outlive its supervisor, and nothing of it survives a stop."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from serving.processes import die_with_parent


class Child:
    """A running server."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> "Child":
        """Start `command` as the leader of a process group of its own; its output is appended to `log`."""
        with _prepared(folder, log) as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(environment),
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return cls(process)

    @property
    def exit_code(self) -> int | None:
        """The exit code of the leader; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until the leader has exited."""
        return await self._process.wait()

    async def stop(self, timeout_s: float) -> None:
        """Send SIGTERM to the leader. After `timeout_s`, or when the leader has exited, send SIGKILL to the rest of the group."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), timeout_s)
        await self.kill()

    async def kill(self) -> None:
        """Send SIGKILL to the whole group, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()
        for _ in range(200):
            self._reap_adopted()
            try:
                os.killpg(self.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            await asyncio.sleep(0.02)

    def _reap_adopted(self) -> None:
        """Reap members of the group that this process has inherited from the leader."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass


def _prepared(folder: Path, log: Path) -> BinaryIO:
    log.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return log.open("ab")
