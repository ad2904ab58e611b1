"""Several worker processes behind one port: uvicorn's supervisor of processes, with what it lacks.

A request to stop is heard at once, also while workers are being replaced (SIGHUP) or do not answer. A worker that cannot
start ends the service only where no other one serves; and the service ends with an exit code other than 0 when nobody
asked it to.
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

_HUNG_S: Final = 30.0  # a worker that is still importing does not answer pings
_PAUSE_S: Final = 2.0  # before another try of what could not start
_POLL_S: Final = 0.05


class _Stop:
    """As `threading.Event`, but a signal handler may set it: there is no lock that its own thread could hold."""

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
        any_ready: whether some worker serves.
    """

    def __init__(self, config: Config, start_timeout_s: float, any_ready: Callable[[], bool]) -> None:
        super().__init__(config, [config.bind_socket()])
        config.timeout_worker_healthcheck = max(1, int(start_timeout_s))  # of a SIGHUP's new worker
        self._any_ready = any_ready
        self._asked_to_stop = False
        self.should_exit: Any = _Stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def run(self) -> None:
        """As uvicorn's; but ends the process with an error if no worker could start."""
        super().run()
        if not self._asked_to_stop:
            sys.exit(STARTUP_FAILURE)

    def keep_subprocess_alive(self) -> None:
        """Replace each worker that is dead or hung."""
        for index, worker in enumerate(self.processes):
            if self._is_well(worker):
                continue
            worker.kill()
            worker.join()
            log.error("worker %s has ended with %s", worker.pid, worker.exitcode)
            if worker.exitcode == STARTUP_FAILURE:
                if not self._any_ready():
                    self.should_exit.set()
                self.should_exit.wait(_PAUSE_S)
            if self.should_exit.is_set():
                return
            self.processes[index] = Process(self.config, self.sockets)
            self.processes[index].start()

    def _is_well(self, worker: Process) -> bool:
        """Whether it lives and answers; also if it is no more time to ask."""
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
            log.debug("worker %s does not answer", worker.pid, exc_info=True)
        return False

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._asked_to_stop = True
        self.should_exit.set()
