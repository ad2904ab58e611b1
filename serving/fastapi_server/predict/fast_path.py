"""The fast path: `POST /predict` with an image as the raw body and its length declared.

The ordinary path makes a scope, a request-response cycle, an event, a task and two messages for each request, and sends
two packets. Here the connection itself collects the body, queues the image, and writes the response when the image's
future is done. Requests that need more (multipart, JSON, chunked bodies, `Expect`, pipelining) take the ordinary path.
Both paths send the same responses, refusals included.
"""

from collections.abc import Callable, Mapping
from typing import Final

from bundle.errors import RequestTimeoutError
from serving.fastapi_server.models.job import Job
from serving.fastapi_server.predict.bodies import is_image
from serving.fastapi_server.predict.request import PredictRequest, PredictResponse
from serving.fastapi_server.service import Service

PATH: Final = b"/predict"


class _NullEvent:
    """Replaces the event that the ordinary path's `receive` waits for."""

    def set(self) -> None:
        """Do nothing."""


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

    def __init__(
        self,
        service: Service,
        headers: Mapping[bytes, bytes],
        on_response: "Callable[[FastPath, PredictResponse], None]",
    ) -> None:
        self._request = PredictRequest(service, headers)
        self._on_response = on_response
        self._parts: list[bytes] = []
        self.keep_alive = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self.message_event = _NullEvent()

    @staticmethod
    def accepts(headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request with these headers can take the fast path."""
        return (
            headers.get(b"content-length", b"").isdigit()
            and is_image(headers.get(b"content-type", b""))
            and b"expect" not in headers
            and b"upgrade" not in headers
        )

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
        """Queue the image: the body is complete."""
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

    def _done(self, job: Job) -> None:
        try:
            if job.error is not None:
                raise job.error
            response = self._request.succeed([job])
        except Exception as error:
            response = self._request.fail(error)
        self._on_response(self, response)
