"""What the supervisor sees of a running FastAPI service. uvicorn replaces dead workers, and drains when stopped."""

from collections.abc import Sequence
from pathlib import Path

from bundle.store import Bundle
from serving.fastapi_server.models.fleet import JOURNAL, SHARED, ready_workers
from serving.servers.server import NoCare


class FastapiCare(NoCare):
    """`serving.servers.server.Care`."""

    def __init__(self, workers: int, scratch: Path) -> None:
        self._workers = workers
        self._scratch = scratch

    def fault(self, bundles: Sequence[Bundle]) -> str:
        """How many worker processes are missing, or not ready yet."""
        if self._workers == 1:  # the one worker is the server's only process
            return ""
        ready = sum(len(ready_workers(folder)) for folder in self._scratch.glob(f"{SHARED}*/{JOURNAL}"))
        return f"{ready} of {self._workers} workers" if ready < self._workers else ""
