"""Several worker processes behind one port: uvicorn's process supervisor, with changes.

A signal to stop takes effect at once, also while workers are replaced (SIGHUP) or do not respond. If a worker cannot
start, the service ends only if no other worker is ready. If it ends without a signal, its exit code is not 0.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

log = logging.getLogger(__name__)

_HUNG_S: Final = 30.0  # a worker that is still importing does not answer a ping
_PAUSE_S: Final = 2.0  # before the next attempt to start a worker
_POLL_S: Final = 0.05


class _StopEvent:
    """Like `threading.Event`, but safe to set in a signal handler: it has no lock."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while not self._is_set and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return self._is_set


class Workers(Multiprocess):
    """The processes, until SIGTERM or SIGINT, or until none of them can start.

    Args:
        any_ready: whether at least one worker accepts requests.
    """

    def __init__(self, config: Config, start_timeout_s: float, any_ready: Callable[[], bool]) -> None:
        super().__init__(config, [config.bind_socket()])
        config.timeout_worker_healthcheck = max(1, int(start_timeout_s))  # for a new worker after SIGHUP
        self._any_ready = any_ready
        self._stop_requested = False
        self.should_exit: Any = _StopEvent()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def run(self) -> None:
        """Run as uvicorn does, but exit with an error if no worker could start."""
        super().run()
        if not self._stop_requested:
            sys.exit(STARTUP_FAILURE)

    def keep_subprocess_alive(self) -> None:
        """Replace every worker that has ended or does not respond."""
        for index, worker in enumerate(self.processes):
            if self._is_healthy(worker):
                continue
            worker.kill()
            worker.join()
            log.error("worker %s has ended with exit code %s", worker.pid, worker.exitcode)
            if worker.exitcode == STARTUP_FAILURE:
                if not self._any_ready():
                    self.should_exit.set()
                self.should_exit.wait(_PAUSE_S)
            if self.should_exit.is_set():
                return
            self.processes[index] = Process(self.config, self.sockets)
            self.processes[index].start()

    def _is_healthy(self, worker: Process) -> bool:
        """Whether the worker runs and answers a ping. True if the service stops meanwhile."""
        deadline = time.monotonic() + _HUNG_S
        try:
            if worker.process.is_alive():
                worker.parent_conn.send(b"ping")
            while worker.process.is_alive() and time.monotonic() < deadline:
                if self.should_exit.is_set():
                    return True
                if worker.parent_conn.poll(_POLL_S):
                    worker.parent_conn.recv()
                    return True
        except (OSError, EOFError):
            log.debug("worker %s does not respond", worker.pid, exc_info=True)
        return False

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._stop_requested = True
        self.should_exit.set()
