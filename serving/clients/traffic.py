"""A closed loop of a few clients in the background, every answer compared with the golden one.

An answer is right if its version is served and its probabilities are those of that version's golden example. So an
answer that mixes two versions is found.
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from bundle.golden import Expected, Fault, compare
from bundle.schemas import Prediction
from bundle.store import Bundle
from serving.clients.connect import connect
from serving.clients.endpoint import Endpoint, Protocol
from serving.clients.golden import predict_or_fault

_PAUSE_AFTER_FAILURE_S: Final = 0.02


@dataclass(frozen=True)
class TrafficRequest:
    """One request.

    Args:
        sent, done: monotonic seconds.
        version: the version that answered.
        fault: why it failed (`no-answer`), or why its answer is not the golden one.
        unchecked: the version that answered has no golden answer to this image.
    """

    sent: float
    done: float
    version: int | None
    fault: Fault | None = None
    unchecked: bool = False

    @property
    def failed(self) -> bool:
        """Not answered, or answered with an error."""
        return self.fault is not None and self.fault.kind == "no-answer"

    @property
    def wrong(self) -> bool:
        """Answered, but not with the golden answer."""
        return self.fault is not None and not self.failed


@dataclass
class TrafficRecord:
    """All requests to one server, in the order in which they ended."""

    requests: list[TrafficRequest] = field(default_factory=list)

    @property
    def failed(self) -> list[TrafficRequest]:
        """Requests without an answer."""
        return [request for request in self.requests if request.failed]

    @property
    def wrong(self) -> list[TrafficRequest]:
        """Requests with a wrong answer."""
        return [request for request in self.requests if request.wrong]

    @property
    def unchecked(self) -> list[TrafficRequest]:
        """Requests whose answers could not be compared."""
        return [request for request in self.requests if request.unchecked]

    @property
    def versions(self) -> Counter[int]:
        """Answers by version."""
        return Counter(request.version for request in self.requests if request.version is not None)

    @property
    def slowest_s(self) -> float:
        """The longest latency."""
        return max((request.done - request.sent for request in self.requests), default=0.0)


class Traffic:
    """Sends requests for the model's default version, from the start to the end of a `with` block.

    Args:
        bundles: the versions of one model that may answer; the images are those of the first.
        tolerance: largest |difference| of a probability.
        pause_s: pause of each client between an answer and its next request.
        timeout_s: of one request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        bundles: Sequence[Bundle],
        tolerance: float,
        *,
        protocol: Protocol = "http",
        api_key: str | None = None,
        clients: int = 2,
        pause_s: float = 0.0,
        timeout_s: float = 30.0,
    ) -> None:
        self.record = TrafficRecord()
        self._endpoint, self._protocol, self._api_key = endpoint, protocol, api_key
        self._timeout_s, self._pause_s, self._tolerance = timeout_s, pause_s, tolerance
        self._model = bundles[0].manifest.model
        self._images = [data for _, data in bundles[0].golden_inputs()]
        self._classes = max(bundle.manifest.output.classes for bundle in bundles)
        self._expected: dict[int, dict[bytes, Expected]] = {
            bundle.manifest.version: {example.data: example.expected for example in bundle.golden_examples()}
            for bundle in bundles
        }
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
        options = {"protocol": self._protocol, "timeout_s": self._timeout_s, "api_key": self._api_key}
        with connect(self._endpoint, self._model, **options) as client:  # type: ignore[arg-type]
            while not self._stop.is_set():
                number += 1
                image = self._images[number % len(self._images)]
                sent = time.monotonic()
                answer = predict_or_fault(client, image, self._classes)
                done = time.monotonic()
                self.record.requests.append(self._checked(sent, done, answer, image))
                pause_s = _PAUSE_AFTER_FAILURE_S if isinstance(answer, Fault) else self._pause_s
                if pause_s:
                    self._stop.wait(pause_s)

    def _checked(self, sent: float, done: float, answer: Prediction | Fault, image: bytes) -> TrafficRequest:
        if isinstance(answer, Fault):
            return TrafficRequest(sent, done, None, answer)
        of_version = self._expected.get(answer.version)
        if of_version is None:
            fault = Fault("version", f"answered by version {answer.version}")
            return TrafficRequest(sent, done, answer.version, fault)
        expected = of_version.get(image)
        if expected is None:
            return TrafficRequest(sent, done, answer.version, unchecked=True)
        return TrafficRequest(sent, done, answer.version, compare(answer, expected, self._tolerance))
