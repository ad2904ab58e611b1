"""TorchServe's management API and metrics."""

import re
import time
from typing import Any, Final

from bundle.errors import DeploymentError
from bundle.store import Bundle
from serving.server_api import call, metric_sum
from serving.settings import ServerSettings
from serving.torchserve_server.configuration import LOOPBACK

_POLL_S: Final = 0.05
_IDLE_S: Final = 0.5
_SECONDS_PER_BATCH: Final = 0.1  # at least


class Management:
    """One running TorchServe. Methods raise DeploymentError (it refused) or OSError (it cannot be reached)."""

    def __init__(self, settings: ServerSettings, metrics_url: str) -> None:
        self._settings = settings
        self._metrics_url = metrics_url
        self._base = f"http://{LOOPBACK}:{settings.ports.torchserve_management}/models"

    def url(self, bundle: Bundle) -> str:
        """The address of one version."""
        return f"{self._base}/{bundle.manifest.model}/{bundle.manifest.version}"

    def describe(self, bundle: Bundle, *, customized: bool = False) -> dict[str, Any]:
        """TorchServe's description of one version; `customized` asks our handler too."""
        (found,) = call("GET", self.url(bundle) + ("?customized=true" if customized else ""))
        assert isinstance(found, dict)
        return found

    def ready_workers(self, bundle: Bundle) -> int:
        """How many workers are ready."""
        return sum(worker["status"] == "READY" for worker in self.describe(bundle)["workers"])

    def worker_pids(self, bundle: Bundle) -> set[int]:
        """The workers' processes."""
        return {worker["pid"] for worker in self.describe(bundle)["workers"] if worker["pid"] > 0}

    def register(self, bundle: Bundle, archive: str) -> None:
        """Register an archive of the store, and start its workers."""
        query = (
            f"url={archive}&model_name={bundle.manifest.model}"
            # A synchronous call would hold one of the few threads that also serve predictions.
            f"&initial_workers={self._settings.workers}&synchronous=false"
        )
        try:
            call("POST", f"{self._base}?{query}")
        except DeploymentError:
            if not self._is_registered(
                bundle
            ):  # 409: an earlier attempt was cut off, but its workers start all the same
                raise

    def set_default(self, bundle: Bundle) -> None:
        """Let this version answer requests that name none."""
        call("PUT", f"{self.url(bundle)}/set-default")

    def scale(self, bundle: Bundle, workers: int, *, wait: bool) -> None:
        """Start or stop workers."""
        suffix = "&synchronous=true" if wait else ""
        call("PUT", f"{self.url(bundle)}?min_worker={workers}&max_worker={workers}{suffix}")

    def unregister(self, bundle: Bundle) -> None:
        """Drop a version."""
        call("DELETE", self.url(bundle), timeout_s=self._settings.request_timeout_s + 30)

    def drain(self, bundle: Bundle, timeout_s: float) -> None:
        """Wait until nothing has waited for as long as a batch may take. TorchServe reports what waits, not what runs.

        Raises:
            DeploymentError: requests still wait after `timeout_s`.
        """
        idle_s = min(
            _IDLE_S + self._settings.max_batch_size * self._seconds_per_batch(bundle), self._settings.request_timeout_s
        )
        deadline = time.monotonic() + timeout_s
        empty_since = None
        while True:
            now = time.monotonic()
            waiting = self.describe(bundle)["jobQueueStatus"]["pendingRequests"]
            if waiting:
                empty_since = None
                if now > deadline:
                    raise DeploymentError(f"{waiting} requests to {bundle.name} still wait after {timeout_s:.0f} s")
            elif empty_since is None:
                empty_since = now
            elif now - empty_since > idle_s:
                return
            time.sleep(_POLL_S)

    def handler_metric(self, name: str, bundle: Bundle) -> float | None:
        """A metric of our handler, over all versions of the model; None if TorchServe cannot be asked."""
        return metric_sum(self._metrics_url, rf'{name}\{{.*ModelName="{re.escape(bundle.manifest.model)}".*\}}')

    def _is_registered(self, bundle: Bundle) -> bool:
        try:
            self.describe(bundle)
        except DeploymentError:
            return False
        return True

    def _seconds_per_batch(self, bundle: Bundle) -> float:
        """The mean so far, but not too little: the next batch may have larger images."""
        total = self.handler_metric("trident_handler_seconds_sum", bundle)
        count = self.handler_metric("trident_handler_seconds_count", bundle)
        return max(total / count, _SECONDS_PER_BATCH) if total and count else _SECONDS_PER_BATCH
