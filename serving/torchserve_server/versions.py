"""The versions in a running TorchServe, by its management API."""

import re
import time
from pathlib import Path
from typing import Any, Final

from bundle.errors import DeploymentError
from bundle.store import Bundle
from serving.server_api import call, counted
from serving.settings import ServerSettings
from serving.torchserve_server.archive import archive_name, build_archive
from serving.torchserve_server.configuration import model_config

_POLL_S: Final = 0.05
_IDLE_S: Final = 0.5
_SECONDS_PER_BATCH: Final = 0.1  # at least
_PATIENCE: Final = 6  # times `request_timeout_s`: TorchServe lets a request wait for any time


class TorchserveVersions:
    """`serving.servers.server.Versions`."""

    def __init__(self, management: str, metrics_url: str, store: Path, settings: ServerSettings) -> None:
        self._management = management
        self._metrics_url = metrics_url
        self._store = store
        self._settings = settings

    def load(self, bundle: Bundle) -> None:
        """Archive and register it; its workers have given golden answers when this returns."""
        build_archive(bundle, model_config(self._settings), self._store)
        query = (
            f"url={archive_name(bundle)}&model_name={bundle.manifest.model}"
            # A synchronous call would hold one of the few threads that also serve predictions.
            f"&initial_workers={self._settings.workers}&synchronous=false"
        )
        try:
            call("POST", f"{self._management}/models?{query}")
        except DeploymentError:
            if not self._is_registered(bundle):  # 409: an earlier attempt was cut off; its workers come up all the same
                raise
        deadline = time.monotonic() + self._settings.start_timeout_s
        seen: set[int] = set()
        while not workers_ready(self._management, bundle, self._settings.workers):
            seen |= {worker["pid"] for worker in describe(self._management, bundle)["workers"] if worker["pid"] > 0}
            if len(seen) > self._settings.workers or time.monotonic() > deadline:  # TorchServe tries again and again
                raise DeploymentError(f"the workers of {bundle.name} do not start; TorchServe's log says why")
            time.sleep(_POLL_S)

    def make_default(self, bundle: Bundle) -> None:
        """`set-default`."""
        call("PUT", f"{self._url(bundle)}/set-default")

    def unload(self, bundle: Bundle) -> None:
        """Wait until its queue is empty and its workers idle, then unregister it."""
        timeout_s = _PATIENCE * self._settings.request_timeout_s
        drain(self._management, self._metrics_url, bundle, self._settings, timeout_s)
        call("DELETE", self._url(bundle), timeout_s=self._settings.request_timeout_s + 30)
        (self._store / archive_name(bundle)).unlink(missing_ok=True)

    def _url(self, bundle: Bundle) -> str:
        return f"{self._management}/models/{bundle.manifest.model}/{bundle.manifest.version}"

    def _is_registered(self, bundle: Bundle) -> bool:
        try:
            describe(self._management, bundle)
        except DeploymentError:
            return False
        return True


def describe(management: str, bundle: Bundle) -> dict[str, Any]:
    """What TorchServe says about one version."""
    (found,) = call("GET", f"{management}/models/{bundle.manifest.model}/{bundle.manifest.version}")
    assert isinstance(found, dict)
    return found


def ready_workers(management: str, bundle: Bundle) -> int:
    """How many workers are ready. `/ping` says Healthy before any is up, and while they are dead."""
    return sum(worker["status"] == "READY" for worker in describe(management, bundle)["workers"])


def workers_ready(management: str, bundle: Bundle, workers: int) -> bool:
    """Whether all of them are."""
    return ready_workers(management, bundle) >= workers


def drain(management: str, metrics_url: str, bundle: Bundle, settings: ServerSettings, timeout_s: float) -> None:
    """Wait until nothing has waited for as long as a batch may take. TorchServe tells what waits, not what runs.

    Raises:
        DeploymentError: something still waits after `timeout_s`.
    """
    idle_s = min(
        _IDLE_S + settings.max_batch_size * _seconds_per_batch(metrics_url, bundle), settings.request_timeout_s
    )
    deadline = time.monotonic() + timeout_s
    empty_since = None
    while True:
        now = time.monotonic()
        waiting = describe(management, bundle)["jobQueueStatus"]["pendingRequests"]
        if waiting:
            empty_since = None
            if now > deadline:
                raise DeploymentError(f"{waiting} requests to {bundle.name} still wait after {timeout_s:.0f} s")
        elif empty_since is None:
            empty_since = now
        elif now - empty_since > idle_s:
            return
        time.sleep(_POLL_S)


def handler_metric(metrics_url: str, name: str, bundle: Bundle) -> float:
    """What our handler counted for a model (all its versions); NaN if TorchServe cannot be asked."""
    return counted(metrics_url, rf'{name}\{{.*ModelName="{re.escape(bundle.manifest.model)}".*\}}')


def _seconds_per_batch(metrics_url: str, bundle: Bundle) -> float:
    """The mean so far, but not too little: the next batch may have larger images."""
    total, count = (handler_metric(metrics_url, f"trident_handler_seconds_{part}", bundle) for part in ("sum", "count"))
    return max(total / count, _SECONDS_PER_BATCH) if count > 0 else _SECONDS_PER_BATCH
