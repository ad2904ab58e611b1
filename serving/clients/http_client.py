"""The client of all three servers over HTTP, on httpx."""

import ssl
import time
from functools import lru_cache

import httpx

from serving.clients.client import Client, TimedPrediction, UnreachableError
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import Endpoint
from serving.clients.http_wire import API_KEY_HEADER, Wire


class HttpClient(Client):
    """A connection to one model on one server. Use it as a context manager, or close it."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        version: int | None = None,
        timeout_s: float = 30.0,
        api_key: str | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.wire: Wire = dialect_of(endpoint.server).http(model, version)
        headers = {} if api_key is None else {API_KEY_HEADER: api_key}
        self._http = httpx.Client(
            base_url=endpoint.url, headers=headers, timeout=timeout_s, trust_env=False, verify=_tls_context()
        )

    def close(self) -> None:
        """Close the connections: Triton's stop waits for idle ones."""
        self._http.close()

    def ask(self, image: bytes, top_k: int | None = None) -> TimedPrediction:
        """The answer with its times.

        Raises:
            UnreachableError, RefusedError, GarbledError.
        """
        request = self.wire.request(image, top_k)
        started = time.perf_counter()
        try:
            response = self._http.post(request.path, headers=dict(request.headers), content=request.body)
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"{self.endpoint.server} at {self.endpoint.url}: {type(error).__name__}: {error}"
            ) from error
        seconds = time.perf_counter() - started
        prediction = self.wire.prediction(response.status_code, response.headers, response.content)
        return TimedPrediction(prediction, seconds, parse_server_timing(response.headers.get("server-timing", "")))


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    """One for all clients: httpx would load the certificates for each, which takes about 30 ms of CPU time."""
    return httpx.create_ssl_context(trust_env=False)


def parse_server_timing(header: str) -> dict[str, float]:
    """Seconds by stage, from `decode;dur=1.2, inference;dur=3.4` (https://www.w3.org/TR/server-timing/, ms)."""
    timings: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in header.split(","))):
        stage, _, duration = entry.partition(";dur=")
        if duration:
            timings[stage] = float(duration) / 1000
    return timings
