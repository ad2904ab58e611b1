"""A real image to a server: the only health check that none of the three can pass while it is broken."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bundle.errors import TridentError, UnavailableError
from bundle.postprocess import Probabilities
from bundle.store import Bundle
from serving.clients.client import UnreachableError
from serving.clients.connect import connect
from serving.clients.endpoint import Endpoint
from serving.clients.http_wire import RefusedError
from serving.container.top1_probe import is_busy
from serving.runtimes import artefact_for
from serving.settings import ServingSettings

Answered = Callable[[Bundle], float]
_POLL_S: Final = 0.1


@dataclass(frozen=True)
class _Question:
    """A golden image, its probabilities, and the version that is asked for (None: the default one)."""

    bundle: Bundle
    version: int | None
    name: str
    image: bytes
    expected: Probabilities
    tolerance: float


class Canary:
    """The questions to whoever serves `bundles`; of several versions of a model, the last one is the default.

    Read once: what a bundle's folder holds later must not decide about a running server.
    """

    def __init__(self, bundles: Sequence[Bundle], settings: ServingSettings) -> None:
        self._settings = settings
        self._questions: list[_Question] = []
        default = {bundle.manifest.model: bundle for bundle in bundles}
        for bundle in bundles:
            (name, image), expected = bundle.golden_inputs()[0], bundle.golden_probabilities()[0]
            tolerance = artefact_for(bundle, settings.runtime, settings.precision).tolerance
            versions = [bundle.manifest.version, *([None] if default[bundle.manifest.model] is bundle else [])]
            self._questions += [_Question(bundle, version, name, image, expected, tolerance) for version in versions]

    def fault(
        self,
        endpoint: Endpoint,
        *,
        busy_is_well: bool = False,
        broken: bool = False,
        answered: Answered = lambda _: 0.0,
    ) -> str:
        """'' if the server gives the golden answers, else what is wrong.

        Args:
            busy_is_well: a server is in order that refuses because its queue is full, or too long to be in time, or
                that does not answer at all, but answers others meanwhile. One such answer ends the round.
            broken: a 503 says nothing new: the server is known to lack workers, or was asked all of this before.
            answered: `serving.servers.server.Care.answered`.
        """
        for question in self._questions:
            before = answered(question.bundle) if busy_is_well else 0.0
            try:
                fault = self._ask(endpoint, question)
            except RefusedError as error:
                full = is_busy(error.code, error.body, None)
                if not full and error.code == UnavailableError.status:
                    full = broken or self._answers_others(question.bundle, before, answered)
                if busy_is_well and full:
                    return ""
                fault = error.message
            except UnreachableError as error:
                if busy_is_well and answered(question.bundle) > before:
                    return ""
                fault = error.message
            except TridentError as error:
                fault = error.message
            if fault:
                return fault
        return ""

    def _ask(self, endpoint: Endpoint, question: _Question) -> str:
        manifest = question.bundle.manifest
        timeout_s, key = self._settings.request_timeout_s + 1, self._settings.client_key
        with connect(endpoint, manifest.model, question.version, timeout_s=timeout_s, api_key=key) as client:
            answer = client.predict(question.image)
        if (answer.model, answer.version) != (manifest.model, manifest.version):
            return f"{answer.model}:{answer.version} answers instead of {question.bundle.name}"
        top, expected = answer.top, question.expected
        if not abs(top.probability - expected[top.class_id]) <= question.tolerance:
            return f"wrong answer to {question.name}: {top.label} {top.probability:.4f}, golden {expected[top.class_id]:.4f}"
        return ""

    def _answers_others(self, bundle: Bundle, before: float, answered: Answered) -> bool:
        """Within the time that a batch may take: TorchServe says the same 503 when its queue is full as when it has no
        workers.
        """
        deadline = time.monotonic() + self._settings.request_timeout_s
        while (now := answered(bundle)) == before and before > 0 and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return now > before
