"""The client of all three servers over HTTP, on httpx."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import httpx

from serving.clients.wire import WIRES, Wire
from serving.errors import TridentError
from serving.schemas import Prediction
from serving.server_plan import Endpoint


class UnreachableError(TridentError):
    """The server did not answer at all, or not in time."""

    kind = "unreachable"
    title = "The server cannot be reached"


@dataclass(frozen=True)
class Reply:
    """A prediction, how long it took as the client saw it, and where the server says the time went (Server-Timing;
    seconds).
    """

    prediction: Prediction
    seconds: float
    server_timing: Mapping[str, float]


class Client(Protocol):
    """What every client can do, whatever server and protocol it speaks to."""

    def predict(self, picture: bytes, top_k: int | None = None) -> Prediction:
        """The answer to one encoded picture.

        Raises:
            UnreachableError, RefusedError, GarbledError.
        """


class HttpClient:
    """A connection to one model on one server. Use it as a context manager, or close it."""

    def __init__(self, endpoint: Endpoint, model: str, version: int | None = None, timeout_s: float = 30.0) -> None:
        self.endpoint = endpoint
        self.wire: Wire = WIRES[endpoint.server](model, version)
        self._http = httpx.Client(base_url=endpoint.url, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections: Triton's stop waits for idle ones."""
        self._http.close()

    def predict(self, picture: bytes, top_k: int | None = None) -> Prediction:
        """The answer to one encoded picture."""
        return self.ask(picture, top_k).prediction

    def ask(self, picture: bytes, top_k: int | None = None) -> Reply:
        """The answer with its times.

        Raises:
            UnreachableError, RefusedError, GarbledError.
        """
        request = self.wire.request(picture, top_k)
        started = time.perf_counter()
        try:
            response = self._http.post(request.path, headers=dict(request.headers), content=request.body)
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"{self.endpoint.server} at {self.endpoint.url}: {type(error).__name__}: {error}"
            ) from error
        seconds = time.perf_counter() - started
        prediction = self.wire.prediction(response.status_code, response.headers, response.content)
        return Reply(prediction, seconds, parse_server_timing(response.headers.get("server-timing", "")))


def parse_server_timing(header: str) -> dict[str, float]:
    """Seconds by stage, from `decode;dur=1.2, inference;dur=3.4` (https://www.w3.org/TR/server-timing/, ms)."""
    timings: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in header.split(","))):
        stage, _, duration = entry.partition(";dur=")
        if duration:
            timings[stage] = float(duration) / 1000
    return timings
