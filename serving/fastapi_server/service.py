"""What the endpoints of one process share."""

import asyncio
from typing import Final

from serving.fastapi_server.admission import Admission
from serving.fastapi_server.metrics import Metrics
from serving.fastapi_server.models.agreement import Agreement
from serving.fastapi_server.models.hosting import Hosting
from serving.settings import ServerSettings

FLUSH_S: Final = 0.25


class Service:
    """One worker process. Made before its event loop runs; `agreement.join` loads the models."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.admission = Admission(settings)
        self.hosting = Hosting(settings, self.metrics)
        self.agreement = Agreement.of_environment(self.hosting, settings)

    async def exposition(self) -> bytes:
        """The metrics for Prometheus. Those of other workers are up to `FLUSH_S` old."""
        self._flush()
        return await asyncio.to_thread(self.metrics.exposition)  # with several workers it reads many files

    async def flush_forever(self) -> None:
        """Flush the metrics periodically and at the end, so that other workers can show them."""
        try:
            while True:
                await asyncio.sleep(FLUSH_S)
                self._flush()
        finally:
            self._flush()

    def _flush(self) -> None:
        hosting = self.hosting
        self.metrics.flush(self.admission.in_flight, hosting.queue_depths(), hosting.on_event_loop())
