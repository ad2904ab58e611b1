"""Requests while something happens to a server: a closed loop of a few clients, every answer checked.

An answer is right if its version is served and every probability is what that version's golden answers say; so an
answer that is half of one version and half of another is found.
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import numpy as np

from bundle.errors import TridentError
from bundle.schemas import Prediction
from bundle.store import Bundle
from serving.clients.connect import connect
from serving.clients.endpoint import Endpoint, Protocol
from serving.runtimes import artefact_for
from serving.settings import ServingSettings

_PAUSE_S: Final = 0.02  # after a failure


@dataclass(frozen=True)
class TrafficRequest:
    """One request: when it was sent and done (monotonic seconds), who answered, and what was wrong ('' if nothing).
    It is unchecked if the version that answered has no golden answer to that image.
    """

    sent: float
    done: float
    version: int | None
    failed: str = ""
    wrong: str = ""
    unchecked: bool = False


@dataclass
class Record:
    """All requests to one server."""

    requests: list[TrafficRequest] = field(default_factory=list)

    @property
    def failed(self) -> list[TrafficRequest]:
        """Not answered, or with an error."""
        return [request for request in self.requests if request.failed]

    @property
    def wrong(self) -> list[TrafficRequest]:
        """Answered, but not as the golden answers say."""
        return [request for request in self.requests if request.wrong]

    @property
    def unchecked(self) -> list[TrafficRequest]:
        """Answered, nobody knows how well."""
        return [request for request in self.requests if request.unchecked]

    @property
    def versions(self) -> Counter[int]:
        """How many answers each version gave."""
        return Counter(request.version for request in self.requests if request.version is not None)

    @property
    def slowest_s(self) -> float:
        """The longest that a request took."""
        return max((request.done - request.sent for request in self.requests), default=0.0)


class Traffic:
    """Runs from the beginning to the end of a `with` block. It asks for the default version; each client pauses for
    `pause_s` between an answer and its next request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        bundles: Sequence[Bundle],
        settings: ServingSettings,
        *,
        protocol: Protocol = "http",
        clients: int = 2,
        pause_s: float = 0.0,
        timeout_s: float = 30.0,
    ) -> None:
        self.record = Record()
        self._endpoint, self._protocol, self._timeout_s, self._pause_s = endpoint, protocol, timeout_s, pause_s
        self._model, self._key = bundles[0].manifest.model, settings.client_key
        self._images = [data for _, data in bundles[0].golden_inputs()]
        self._golden = {
            bundle.manifest.version: {
                data: row for (_, data), row in zip(bundle.golden_inputs(), bundle.golden_probabilities(), strict=True)
            }
            for bundle in bundles
        }
        self._classes = max(bundle.manifest.output.classes for bundle in bundles)
        self._tolerance = max(
            artefact_for(bundle, settings.runtime, settings.precision).tolerance for bundle in bundles
        )
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self._timeout_s + 5)

    def _run(self, number: int) -> None:
        with connect(
            self._endpoint, self._model, protocol=self._protocol, timeout_s=self._timeout_s, api_key=self._key
        ) as client:
            while not self._stop.is_set():
                number += 1
                image = self._images[number % len(self._images)]
                sent = time.monotonic()
                try:
                    answer = client.predict(image, self._classes)
                except TridentError as error:
                    self.record.requests.append(TrafficRequest(sent, time.monotonic(), None, failed=error.message))
                    self._stop.wait(_PAUSE_S)
                    continue
                done = time.monotonic()
                fault = self._fault(answer, image)
                request = TrafficRequest(sent, done, answer.version, wrong=fault or "", unchecked=fault is None)
                self.record.requests.append(request)
                if self._pause_s:
                    self._stop.wait(self._pause_s)

    def _fault(self, answer: Prediction, image: bytes) -> str | None:
        """What is wrong with an answer, '' if nothing, None if there is no golden one."""
        golden = self._golden.get(answer.version)
        if golden is None:
            return f"answered by version {answer.version}"
        expected = golden.get(image)
        if expected is None:
            return None
        got = np.full(len(expected), np.nan)
        for entry in answer.predictions:
            if entry.class_id < len(expected):
                got[entry.class_id] = entry.probability
        difference = float(np.abs(got - expected).max())
        return "" if difference <= self._tolerance else f"off by {difference:.1e} from version {answer.version}"
