"""What the supervisor does for a running TorchServe.

A killed worker is restarted by TorchServe itself, for `maxRetryTimeoutInSec`; then it is abandoned for good, while /ping
stays healthy for long and requests queue up behind nobody. And SIGTERM cuts requests off.
"""

import time
from collections.abc import Sequence
from typing import Final

from bundle.store import Bundle
from serving.server_api import call
from serving.settings import ServerSettings
from serving.torchserve_server.versions import drain, handler_metric, ready_workers

PATIENCE_S: Final = 20.0  # a worker that TorchServe restarts is back sooner


class TorchserveCare:
    """`serving.servers.server.Care`."""

    def __init__(self, management: str, metrics_url: str, settings: ServerSettings) -> None:
        self._management = management
        self._metrics_url = metrics_url
        self._settings = settings
        self._short_since: float | None = None

    def fault(self, bundles: Sequence[Bundle]) -> str:
        """How many workers are missing."""
        ready = {bundle.name: ready_workers(self._management, bundle) for bundle in bundles}
        wanted = self._settings.workers
        short = [f"{number} of {wanted} workers of {name}" for name, number in ready.items() if number < wanted]
        self._short_since = (self._short_since or time.monotonic()) if short else None
        return ", ".join(short)

    def mend(self, bundles: Sequence[Bundle]) -> str:
        """Scale to none and back, which makes TorchServe try again; but first give it the time to do so itself."""
        if self._short_since is None or time.monotonic() - self._short_since < PATIENCE_S:
            return ""
        self._short_since = None
        workers = self._settings.workers
        for bundle in bundles:
            if ready_workers(self._management, bundle) < workers:
                url = f"{self._management}/models/{bundle.manifest.model}/{bundle.manifest.version}"
                call("PUT", f"{url}?min_worker=0&max_worker=0&synchronous=true")
                call("PUT", f"{url}?min_worker={workers}&max_worker={workers}")
        return "scaled its workers to 0 and back"

    def answered(self, bundle: Bundle) -> float:
        """The batches that its model computed so far, by the histogram of our handler: TorchServe's own count leaves
        gRPC out. It keeps a question in its queue for any time, so that silence alone does not tell a busy server from
        a dead one.
        """
        return handler_metric(self._metrics_url, "trident_inference_seconds_count", bundle)

    def drain(self, bundles: Sequence[Bundle]) -> None:
        """Until nothing waits."""
        for bundle in bundles:
            drain(self._management, self._metrics_url, bundle, self._settings, self._settings.request_timeout_s)
