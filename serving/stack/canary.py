"""Golden requests to a server: the only health check that a broken server cannot pass."""

import time
from dataclasses import dataclass
from typing import Final

from bundle.errors import TridentError, UnavailableError
from bundle.golden import Fault, compare
from bundle.postprocess import DEFAULT_TOP_K
from bundle.store import Bundle, GoldenExample
from serving.clients.client import UnreachableError
from serving.clients.connect import connect
from serving.clients.http_wire import RefusedError
from serving.container.top1_probe import is_overloaded
from serving.deployment import Deployment
from serving.runtimes import artefact_for
from serving.servers.server import Server
from serving.settings import ServingSettings

_POLL_S: Final = 0.1


@dataclass(frozen=True)
class _GoldenRequest:
    """One golden example, sent to a version of its model (None: the default version)."""

    bundle: Bundle
    version: int | None
    example: GoldenExample
    tolerance: float


class Canary:
    """One golden request for every deployed version, and one for the default version of each model.

    The examples are read once: later changes of a bundle's folder must not affect the health check of a running server.
    """

    def __init__(self, deployment: Deployment, settings: ServingSettings) -> None:
        """Raises: BundleError, OSError: a bundle cannot be read."""
        self._settings = settings
        self._examples = {bundle.name: _first_example(bundle) for bundle in deployment}
        self._requests = self._requests_to(deployment)

    def replaced(self, deployment: Deployment) -> "Canary":
        """The golden requests of another deployment; only new bundles are read.

        Raises:
            BundleError, OSError: a bundle cannot be read.
        """
        canary = Canary(Deployment(()), self._settings)
        for bundle in deployment:
            canary._examples[bundle.name] = self._examples.get(bundle.name) or _first_example(bundle)
        canary._requests = canary._requests_to(deployment)
        return canary

    def _requests_to(self, deployment: Deployment) -> list[_GoldenRequest]:
        settings, requests = self._settings, []
        for bundle in deployment:
            example = self._examples[bundle.name]
            tolerance = artefact_for(bundle, settings.runtime, settings.precision).tolerance
            versions = [bundle.manifest.version, *([None] if deployment.is_default(bundle) else [])]
            requests += [_GoldenRequest(bundle, version, example, tolerance) for version in versions]
        return requests

    def fault(self, server: Server) -> Fault | None:
        """The first wrong or missing answer, or None."""
        return self._first_fault(server, overload_is_healthy=False, refusal_is_known=False)

    def fault_under_load(self, server: Server, *, refusal_is_known: bool = False) -> Fault | None:
        """As `fault`, but an overloaded server counts as healthy: one whose queue is full, one that could not answer in
        time, and one that does not answer this request while it answers others.

        Args:
            refusal_is_known: a 503 is no news: the server is known to lack workers, or has passed before.
        """
        return self._first_fault(server, overload_is_healthy=True, refusal_is_known=refusal_is_known)

    def _first_fault(self, server: Server, *, overload_is_healthy: bool, refusal_is_known: bool) -> Fault | None:
        for request in self._requests:
            served = server.predictions_served(request.bundle) if overload_is_healthy else None
            try:
                fault = self._send(server, request)
            except TridentError as error:
                if overload_is_healthy and self._is_overload(server, request, error, served, refusal_is_known):
                    return None  # one such answer ends the round
                fault = Fault("no-answer", error.message)
            if fault is not None:
                return fault
        return None

    def _send(self, server: Server, request: _GoldenRequest) -> Fault | None:
        manifest, settings = request.bundle.manifest, self._settings
        timeout_s = settings.request_timeout_s + 1  # the server gives up first, and says so
        with connect(
            server.endpoint, manifest.model, request.version, timeout_s=timeout_s, api_key=settings.client_key
        ) as client:
            answer = client.predict(request.example.data)
        return compare(answer, request.example.expected, request.tolerance)

    def _is_overload(
        self, server: Server, request: _GoldenRequest, error: TridentError, served: float | None, refusal_is_known: bool
    ) -> bool:
        if isinstance(error, UnreachableError):
            return _has_grown(served, server.predictions_served(request.bundle))
        if not isinstance(error, RefusedError):
            return False
        if is_overloaded(error.code, error.body, None):
            return True
        if error.code != UnavailableError.status:
            return False
        return refusal_is_known or self._answers_others(server, request.bundle, served)

    def _answers_others(self, server: Server, bundle: Bundle, served: float | None) -> bool:
        """Whether other requests are answered within the time that a batch may take.

        TorchServe answers 503 when its queue is full, and the same 503 when it has no workers.
        """
        deadline = time.monotonic() + self._settings.request_timeout_s
        while not (grown := _has_grown(served, now := server.predictions_served(bundle))):
            if not served or now is None or time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        return grown


def _first_example(bundle: Bundle) -> GoldenExample:
    return bundle.golden_examples(DEFAULT_TOP_K)[0]


def _has_grown(before: float | None, now: float | None) -> bool:
    return before is not None and now is not None and now > before
