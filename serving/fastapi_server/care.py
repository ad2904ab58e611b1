"""What the supervisor sees of a running FastAPI service. uvicorn replaces dead workers, and drains when stopped."""

from collections.abc import Sequence

import psutil

from serving.bundle import Bundle
from serving.server_plan import NoCare


class FastapiCare(NoCare):
    """`serving.server_plan.Care`."""

    def __init__(self, pid: int, workers: int) -> None:
        self._pid = pid
        self._workers = workers

    def fault(self, bundles: Sequence[Bundle]) -> str:
        """How many worker processes are missing."""
        if self._workers == 1:  # the one worker is the server's only process
            return ""
        alive = 0
        try:
            for child in psutil.Process(self._pid).children():
                try:
                    is_worker = any("spawn_main" in word for word in child.cmdline())
                    alive += is_worker and child.status() != psutil.STATUS_ZOMBIE
                except psutil.Error:
                    continue
        except psutil.Error:
            return ""  # the server itself is gone, which its supervisor sees
        return f"{alive} of {self._workers} workers" if alive < self._workers else ""
