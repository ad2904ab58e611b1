"""What the endpoints of one process share."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from serving.fastapi_server.access import Access
from serving.fastapi_server.metrics import Metrics
from serving.fastapi_server.models.fleet import Fleet
from serving.fastapi_server.models.hosting import Hosting
from serving.settings import ServerSettings

FLUSH_S: Final = 0.25


@dataclass(frozen=True)
class Service:
    """One worker process. Made before its event loop runs; `hosting.start` loads the models."""

    settings: ServerSettings
    metrics: Metrics = field(init=False)
    access: Access = field(init=False)
    hosting: Hosting = field(init=False)
    fleet: Fleet = field(init=False)

    def __post_init__(self) -> None:
        metrics = Metrics()
        hosting = Hosting(self.settings, metrics)
        for name, part in {
            "metrics": metrics,
            "access": Access(self.settings),
            "hosting": hosting,
            "fleet": Fleet.of_environment(hosting, self.settings),
        }.items():
            object.__setattr__(self, name, part)

    async def exposition(self) -> bytes:
        """The metrics as Prometheus scrapes them, up to this moment (of other workers: up to `FLUSH_S` ago)."""
        self._flush()
        return await asyncio.to_thread(self.metrics.exposition)  # with several workers it reads many files

    async def flush_forever(self) -> None:
        """Hand the metrics over, now and then and at the end, so that other workers can show them."""
        try:
            while True:
                await asyncio.sleep(FLUSH_S)
                self._flush()
        finally:
            self._flush()

    def _flush(self) -> None:
        self.metrics.flush(self.access.in_flight, self.hosting.queue_depths())
