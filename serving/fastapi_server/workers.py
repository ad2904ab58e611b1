"""Several worker processes behind one port: uvicorn's supervisor of processes, with what it lacks.

A request to stop is heard at once, also while workers are being replaced (SIGHUP); and the service ends with an exit
code other than 0 when nobody asked it to.
"""

import signal
import sys
import time
from types import FrameType
from typing import Any, Final

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess

_HUNG_S: Final = 30  # a worker that is still importing does not answer pings
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
    """The processes, until SIGTERM or SIGINT, or until one of them cannot start."""

    def __init__(self, config: Config, start_timeout_s: float) -> None:
        super().__init__(config, [config.bind_socket()])
        config.timeout_worker_healthcheck = _HUNG_S
        self._start_timeout_s = max(1, int(start_timeout_s))
        self._asked_to_stop = False
        self.should_exit: Any = _Stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def run(self) -> None:
        """As uvicorn's; but ends the process with an error if a worker could not start."""
        super().run()
        if not self._asked_to_stop:
            sys.exit(STARTUP_FAILURE)

    def handle_hup(self) -> None:
        """Replace the workers one by one; each new one has the time that a start may take."""
        self.config.timeout_worker_healthcheck = self._start_timeout_s
        try:
            super().handle_hup()
        finally:
            self.config.timeout_worker_healthcheck = _HUNG_S

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._asked_to_stop = True
        self.should_exit.set()
