"""Running contestants: each on the same cores, paused (SIGSTOP) while it is not measured."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from bundle.errors import TridentError
from bundle.store import Bundle
from loadtest.errors import LoadtestError
from loadtest.lanes.lane import Lane
from loadtest.lanes.parity_gate import check_parity
from loadtest.overhead.contestants import Contestant
from serving.processes import die_with_parent

PAUSE_TIMEOUT_S: Final = 2.0
START_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True)
class RunningContestant:
    """A server that has given the golden answers, and is paused."""

    lane: Lane
    process: "subprocess.Popen[bytes]"

    @contextlib.contextmanager
    def resumed(self) -> Iterator[None]:
        """Let the server run during a block."""
        _signal(self.process, signal.SIGCONT)
        try:
            yield
        finally:
            _pause(self.process)


@contextlib.contextmanager
def running(
    contestant: Contestant,
    bundle: Bundle | None,
    cores: Sequence[int],
    timeout_s: float = START_TIMEOUT_S,
    settle_s: float = 0.0,
) -> Iterator[RunningContestant]:
    """Start a server on some cores, wait until it gives the golden answers, and pause it. It is stopped with the block.

    Args:
        bundle: None if the server is a null target.
        settle_s: time between the golden answers and the pause, for workers that are still starting.

    Raises:
        LoadtestError: it did not start, or its answers differ from the golden answers.
    """
    port = free_port()
    lane = contestant.lane.model_copy(update={"url": f"http://127.0.0.1:{port}"})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | contestant.environment(port)

    def pin() -> None:
        die_with_parent()
        os.sched_setaffinity(0, cores)

    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            contestant.command(port), env=environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=pin
        )
        try:
            fault = _wait_until_right(lane, bundle, process, timeout_s)
            if fault is not None:
                log.seek(0)
                output = log.read()[-3000:].decode(errors="replace")
                raise LoadtestError(f"{contestant.name} did not start: {fault}\n{output}")
            time.sleep(settle_s)
            server = RunningContestant(lane, process)
            _pause(process)
            yield server
        finally:
            _stop(process)


def _pause(process: "subprocess.Popen[bytes]") -> None:
    """Stop the process and its descendants; return when the process is stopped."""
    _signal(process, signal.SIGSTOP)
    deadline = time.monotonic() + PAUSE_TIMEOUT_S
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.001)


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_until_right(
    lane: Lane, bundle: Bundle | None, process: "subprocess.Popen[bytes]", timeout_s: float
) -> str | None:
    """Wait for the golden answers. Returns the last fault if they do not come in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            faults: tuple[str, ...] = check_parity(lane, bundle).faults
        except TridentError as error:
            faults = (error.message,)
        if not faults:
            return None
        if process.poll() is not None:
            return f"the process ended with code {process.returncode}"
        if time.monotonic() > deadline:
            return faults[0]
        time.sleep(0.2)


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to the server and all its descendants; some servers start theirs in other sessions."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in (*parent.children(recursive=True), parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(process.pid).children(recursive=True)
        _signal(process, signal.SIGCONT)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        _signal(process, signal.SIGKILL)
        for orphan in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()
    process.wait()
