"""The fast path: an inference request whose body has a declared length, on a plain connection.

The ordinary path makes a scope, a request-response cycle, an event, a task and two messages for each request, and sends
two packets. Here the connection itself collects the body, queues it, and writes the response when the model is done.
Requests that need more (multipart, JSON to `/predict`, chunked bodies, `Expect`, pipelining) take the ordinary path. Both
paths send the same responses, refusals included.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from bundle.errors import RequestTimeoutError
from serving.fastapi_server.model_request import HttpResponse, ModelRequest
from serving.fastapi_server.oip.request import TensorRequest
from serving.fastapi_server.predict.bodies import is_image
from serving.fastapi_server.predict.request import PredictRequest
from serving.fastapi_server.service import Service

_PREDICT: Final = b"/predict"
_INFER: Final = re.compile(rb"/v2/models/([\w.-]+)(?:/versions/([\w.-]+))?/infer")


def plain_request(service: Service, path: bytes, headers: Mapping[bytes, bytes]) -> ModelRequest | None:
    """The request, if it can take the fast path."""
    if not headers.get(b"content-length", b"").isdigit() or b"expect" in headers or b"upgrade" in headers:
        return None
    if path == _PREDICT:
        return PredictRequest(service, headers) if is_image(headers.get(b"content-type", b"")) else None
    found = _INFER.fullmatch(path)
    if found is None:
        return None
    version = found[2].decode() if found[2] is not None else None
    return TensorRequest(service, headers, found[1].decode(), version)


class _NullEvent:
    """Replaces the event that the ordinary path's `receive` waits for."""

    def set(self) -> None:
        """Do nothing."""


_NULL_EVENT: Final = _NullEvent()


class FastPath:
    """One such request. It replaces uvicorn's request-response cycle, and has the attributes that uvicorn reads.

    Call `start`, `add` for each part of the body, then `submit`. `on_response` is called once, unless the client
    disconnects (`lost`): by `start` if the request is refused, otherwise after `submit`.
    """

    __slots__ = (
        "_on_response",
        "_parts",
        "_request",
        "disconnected",
        "keep_alive",
        "message_event",
        "response_complete",
        "response_started",
    )

    def __init__(self, request: ModelRequest, on_response: "Callable[[FastPath, HttpResponse], None]") -> None:
        self._request = request
        self._on_response = on_response
        self._parts: list[bytes] = []
        self.keep_alive = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self.message_event = _NULL_EVENT

    def start(self, query_string: bytes) -> None:
        """Admit the request, or refuse it."""
        try:
            self._request.admit(query_string)
        except Exception as error:
            self._on_response(self, self._request.fail(error))

    def add(self, part: bytes) -> None:
        """Receive a part of the body."""
        if not self.response_complete:
            self._parts.append(part)

    def submit(self) -> None:
        """Queue the body: it is complete."""
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        try:
            self._request.submit(body, self._done)
        except Exception as error:
            self._on_response(self, self._request.fail(error))

    def lost(self, *, too_slow: bool) -> None:
        """The client has disconnected. `too_slow`: it was answered with 408."""
        if too_slow:
            self._request.abandon(RequestTimeoutError.status)
        else:
            self._request.cancel()

    def _done(self) -> None:
        try:
            response = self._request.respond()
        except Exception as error:
            response = self._request.fail(error)
        self._on_response(self, response)
