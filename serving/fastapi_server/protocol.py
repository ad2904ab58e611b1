"""uvicorn's HTTP/1.1 protocol, with what it lacks: limits on what a slow or greedy client may hold, word of a lost
connection, a drain that loses nothing, and a short way for plain requests (`express.py`).

The time limit is on the whole request, from its first byte to its last: whoever sends a header or a byte of body now
and then holds a connection no longer than `read_timeout_s`
(https://en.wikipedia.org/wiki/Slowloris_(computer_security)). Whoever does not read the answer holds it no longer
either.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Final, Literal, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bundle.errors import RequestTimeoutError
from bundle.schemas import problem
from serving.fastapi_server.predict.fast_path import PATH, FastPath
from serving.fastapi_server.predict.request import PredictResponse
from serving.fastapi_server.problems import PROBLEM_JSON

CONNECTION: Final = "trident.connection"  # in the ASGI scope
# After SIGTERM a kept connection stays open this long, so that a request that is on its way is still answered.
DRAIN_S: Final = 0.5
# The rest of a request that was answered before its end is thrown away for this long.
LINGER_S: Final = 1.0


# Of one request's line and headers together.
MAX_HEAD_BYTES: Final = 65_536


class Connection(Protocol):
    """What the endpoint needs to know of the connection."""

    too_slow: bool  # the request did not come in time, and has been answered so

    def cancel_when_lost(self, future: "asyncio.Future[Any]") -> None:
        """Cancel the future if the client goes away before it is done."""


class ServiceProtocol(HttpToolsProtocol):
    """One connection."""

    cycle: Any  # uvicorn's RequestResponseCycle, or an FastPath

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected: it has `read_timeout_s` to send its first request."""
        self.lost = self.too_slow = False
        self._head_bytes = 0
        self._unread: asyncio.TimerHandle | None = None
        self._riding: FastPath | None = None
        self._draining = False
        self._whole = False  # whether the bytes that came last ended a request
        self._awaited: list[asyncio.Future[Any]] = []
        self._stage: Literal["idle", "headers", "body"] = "idle"  # what is being read
        self._reading: asyncio.TimerHandle | None = None
        self.read_timeout_s: float = self.app.service.settings.read_timeout_s
        self._read_within(self.read_timeout_s)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came. On an idle connection they begin a request, whose time runs from now if it is not there whole."""
        self._whole = False
        super().data_received(data)
        if self._stage == "headers":
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "the request's headers are too large")
        else:
            self._head_bytes = 0
        if self._reading is None and not (self._whole and self._stage == "idle"):
            self._read_within(self.read_timeout_s)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._stage = "headers"
        self._awaited = [future for future in self._awaited if not future.done()]
        self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        """Its headers are there: now its way is known."""
        self._stage = "body"
        express = self._fast_path()
        if express is None:
            super().on_headers_complete()
        else:
            self.cycle = self._riding = express
        if self._draining:
            self.cycle.keep_alive = False

    def _fast_path(self) -> FastPath | None:
        """The request on the short way, if that is for it."""
        path, _, query = self.url.partition(b"?")
        plain = (
            path == PATH
            and b"#" not in query
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        )
        return FastPath.begin(self.app.service, query, dict(self.headers), self._send) if plain else None

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        if isinstance(self.cycle, FastPath):
            self.cycle.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """It is there whole."""
        self._stage = "idle"
        self._whole = True
        self._read_within(None)
        if isinstance(self.cycle, FastPath):
            self.cycle.submit()
        else:
            super().on_message_complete()
            if self.cycle.response_complete and not self.transport.is_closing():
                self._unset_keepalive_if_required()  # the rest of a request that was answered early
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def _send(self, express: FastPath, reply: PredictResponse) -> None:
        """Answer what came the short way: one packet."""
        if self.lost:
            return
        lines = [STATUS_LINE[reply.status]]
        for name, value in (*self.server_state.default_headers, *reply.headers):
            lines += (name, b": ", value, b"\r\n")
        if not express.keep_alive:
            lines.append(b"connection: close\r\n")
        express.response_started = express.response_complete = True
        self.transport.write(b"".join((*lines, b"\r\n", reply.body)))
        if not express.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """It is answered. Where that was before its end (a body too large), the rest is thrown away, but not for long.

        Hanging up at once would be a reset, and the client would never see the answer.
        """
        super().on_response_complete()
        if self._stage == "body" and self.cycle.response_complete:
            self._read_within(LINGER_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went away: what was computed for it need not be finished."""
        self.lost = True
        self._read_within(None)
        for future in self._awaited:
            future.cancel()
        if self._riding is not None and not self._riding.response_complete:
            self._riding.lost(too_slow=self.too_slow)
        self.resume_writing()
        super().connection_lost(exc)

    def cancel_when_lost(self, future: "asyncio.Future[Any]") -> None:
        """As `Connection` says."""
        self._awaited.append(future)

    def pause_writing(self) -> None:
        """The client does not read. Not for long."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.read_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(400, msg)

    def shutdown(self) -> None:
        """The server stops: answer what is under way or about to come, then close."""
        self._draining = True
        self.app.service.hosting.drain()
        if self._is_idle():
            self.loop.call_later(DRAIN_S, self._close_if_idle)
        elif self._owes_an_answer():
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()

    def _is_idle(self) -> bool:
        return self._stage == "idle" and not self._owes_an_answer()

    def _owes_an_answer(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _read_within(self, seconds: float | None) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self.loop.call_later(seconds, self._too_slow) if seconds is not None else None

    def _too_slow(self) -> None:
        """Answer 408, if there is something to answer, and hang up."""
        self._reading = None
        if self.transport.is_closing():
            return
        if self._stage == "headers" and self._owes_an_answer():  # to the request before: that one first
            self.cycle.keep_alive = False
            return
        self.too_slow = True
        unanswered_body = self._stage == "body" and not self.cycle.response_started
        if self._stage == "headers" or unanswered_body:
            self._refuse(RequestTimeoutError.status, f"the request was not complete within {self.read_timeout_s:g} s")
        if unanswered_body:
            self.cycle.disconnected = True  # the application's `receive` tells it
            self.cycle.message_event.set()
        self.transport.close()

    def _refuse(self, status: int, detail: str) -> None:
        """Write a problem, and hang up."""
        title = HTTPStatus(status).phrase
        body = problem(status, title.lower().replace(" ", "-"), title, detail).model_dump_json().encode()
        lines = [STATUS_LINE[status]]
        for name, value in (
            *self.server_state.default_headers,
            (b"content-type", PROBLEM_JSON.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ):
            lines += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*lines, b"\r\n", body)))
        self.transport.close()
