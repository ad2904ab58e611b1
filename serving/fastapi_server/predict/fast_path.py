"""The short way of the plainest request: an image as the raw body of `POST /predict`, its length declared.

The ordinary way makes a scope, a request-response cycle, an event, a task and two messages for each request, and sends
two packets. Here the connection itself collects the body, queues the image, and writes the answer when the image's
future is done. Whatever is not plain (another path or form of body, pipelining, `Expect`, a key that is wrong, ...)
goes the ordinary way, which also writes what is to be said of a request that is not let in.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from bundle.errors import TridentError
from serving.fastapi_server.models.batcher import Job
from serving.fastapi_server.predict.bodies import is_image
from serving.fastapi_server.predict.request import PredictRequest, PredictResponse
from serving.fastapi_server.service import Service

PATH: Final = b"/predict"


class _NullEvent:
    """Stands for the event that the ordinary way's `receive` waits for."""

    def set(self) -> None:
        """Nobody waits."""


class FastPath:
    """One such request. It stands where uvicorn keeps its request-response cycle, and has what uvicorn reads there."""

    __slots__ = (
        "_exchange",
        "_on_reply",
        "_parts",
        "disconnected",
        "future",
        "keep_alive",
        "message_event",
        "response_complete",
        "response_started",
    )

    def __init__(self, exchange: PredictRequest, on_reply: "Callable[[FastPath, PredictResponse], None]") -> None:
        self._exchange = exchange
        self._on_reply = on_reply
        self._parts: list[bytes] = []
        self.future: asyncio.Future[Job] | None = None
        self.keep_alive = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self.message_event = _NullEvent()

    @classmethod
    def begin(
        cls,
        service: Service,
        query: bytes,
        headers: Mapping[bytes, bytes],
        on_reply: "Callable[[FastPath, PredictResponse], None]",
    ) -> "FastPath | None":
        """Take the request, if its headers are plain and let it in."""
        length = headers.get(b"content-length", b"")
        if not (
            length.isdigit()
            and int(length) <= service.settings.max_body_bytes
            and is_image(headers.get(b"content-type", b""))
            and b"expect" not in headers
            and b"upgrade" not in headers
        ):
            return None
        exchange = PredictRequest(service, headers)
        try:
            exchange.admit(query)
        except TridentError:
            exchange.withdraw()
            return None
        return cls(exchange, on_reply)

    def add(self, part: bytes) -> None:
        """A piece of the body."""
        self._parts.append(part)

    def submit(self) -> None:
        """The body is there."""
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        try:
            (self.future,) = self._exchange.submit([body])
        except Exception as error:
            self._on_reply(self, self._exchange.fail(error))
        else:
            self.future.add_done_callback(self._done)

    def lost(self, *, too_slow: bool) -> None:
        """The client is gone."""
        if self.future is None:
            self._exchange.abandon(too_slow=too_slow)
        else:
            self.future.cancel()  # `_done` does the rest

    def _done(self, future: "asyncio.Future[Job]") -> None:
        if future.cancelled():
            self._exchange.abandon()
            return
        try:
            reply = self._exchange.succeed([future.result()])
        except Exception as error:
            reply = self._exchange.fail(error)
        self._on_reply(self, reply)
