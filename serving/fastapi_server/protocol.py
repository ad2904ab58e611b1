"""uvicorn's HTTP/1.1 protocol, extended: time limits for slow clients, notice of lost connections, a drain that answers
every request, and the fast path.

The read limit covers a request from its first byte to its last. A client that sends a few bytes now and then therefore
cannot hold a connection longer than `read_timeout_s` (https://en.wikipedia.org/wiki/Slowloris_(computer_security)). The
same limit applies to a client that does not read the response.
"""

import asyncio
from typing import Any, Final, Literal

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bundle.errors import RequestTimeoutError
from serving.fastapi_server.connection import CONNECTION
from serving.fastapi_server.fast_path import FastPath, plain_request
from serving.fastapi_server.model_request import HttpResponse
from serving.fastapi_server.problems import PROBLEM_JSON, problem_of_status

# After SIGTERM, an idle connection stays open this long: a request may be on its way.
DRAIN_S: Final = 0.5
# If a request is answered before it is complete, the rest is read and discarded for this long.
LINGER_S: Final = 1.0
# The limit for the request line and the headers together.
MAX_HEAD_BYTES: Final = 65_536


class ServiceProtocol(HttpToolsProtocol):
    """One connection. Implements `connection.Connection`."""

    cycle: Any  # uvicorn's RequestResponseCycle, or a FastPath

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected. It has `read_timeout_s` to send its first request."""
        self.lost = self.too_slow = False
        self._head_bytes = 0
        self._fast: FastPath | None = None  # the latest request on the fast path
        self._draining = False
        self._complete = False  # whether the latest bytes completed a request
        self._futures: list[asyncio.Future[Any]] = []  # cancelled when the client disconnects
        self._stage: Literal["idle", "headers", "body"] = "idle"  # what is being read
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self.read_timeout_s: float = self.app.service.settings.read_timeout_s
        self._limit_read(self.read_timeout_s)
        self._idle_since = self.loop.time()
        self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle_long)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Parse bytes. The read limit starts with the first bytes of a request that is not complete."""
        self._complete = False
        super().data_received(data)
        if self._stage == "headers":
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "the request's headers are too large")
        else:
            self._head_bytes = 0
        if self._read_timer is None and not (self._complete and self._stage == "idle"):
            self._limit_read(self.read_timeout_s)

    def on_message_begin(self) -> None:
        """A request begins. uvicorn makes its scope here; only the ordinary path needs one (`_begin_ordinary`)."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._stage = "headers"
        if self._futures:
            self._futures = [future for future in self._futures if not future.done()]

    def on_headers_complete(self) -> None:
        """Choose the path of the request."""
        self._stage = "body"
        path, _, query = self.url.partition(b"?")
        request = plain_request(self.app.service, path, dict(self.headers)) if self._is_plain() else None
        if request is not None and b"#" not in query:
            self.cycle = self._fast = FastPath(request, self._send)
            self.cycle.keep_alive = not self._draining
            self.cycle.start(query)
        else:
            self._begin_ordinary()
            super().on_headers_complete()
            if self._draining:
                self.cycle.keep_alive = False

    def _begin_ordinary(self) -> None:
        url, headers, expect_100_continue = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect_100_continue
        self.headers += headers
        self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]

    def _is_plain(self) -> bool:
        """Whether the connection's state and the method allow the fast path."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        )

    def on_body(self, body: bytes) -> None:
        """A part of the body has arrived."""
        if isinstance(self.cycle, FastPath):
            self.cycle.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._stage = "idle"
        self._complete = True
        self._limit_read(None)
        if isinstance(self.cycle, FastPath):
            if not self.cycle.response_complete:
                self.cycle.submit()
                return
        else:
            super().on_message_complete()
        if self.cycle.response_complete:  # before the request was complete
            self._idle_since = self.loop.time()

    def _send(self, fast: FastPath, response: HttpResponse) -> None:
        """Send a response of the fast path, in one packet."""
        if self.lost:
            return
        fast.response_started = fast.response_complete = True
        self._write(response.status, response.headers, response.body, close=not fast.keep_alive)
        self.on_response_complete()

    def _write(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, close: bool) -> None:
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
        lines.append(body)
        self.transport.write(b"".join(lines))
        if close:
            self.transport.close()

    def on_response_complete(self) -> None:
        """A response has been sent. If its request is not complete, discard the rest of it for a while.

        An immediate close would reset the connection, and the client might not see the response.
        """
        self._idle_since = self.loop.time()
        if isinstance(self.cycle, FastPath) and not self.pipeline:
            self.server_state.total_requests += 1
        else:
            super().on_response_complete()
        if self._stage == "body" and self.cycle.response_complete:
            self._limit_read(LINGER_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has disconnected: cancel its work."""
        self.lost = True
        self._limit_read(None)
        self._idle_timer.cancel()
        for future in self._futures:
            future.cancel()
        if self._fast is not None and not self._fast.response_complete:
            self._fast.lost(too_slow=self.too_slow)
        self.resume_writing()
        super().connection_lost(exc)

    def _close_if_idle_long(self) -> None:
        """Close the connection if it has been idle for `timeout_keep_alive`; otherwise look again later.

        uvicorn's own timer is started and cancelled for every request, so the fast path does not use it.
        """
        left_s = float(self.timeout_keep_alive)
        if self._is_idle():
            left_s -= self.loop.time() - self._idle_since
        if left_s <= 0:
            self.transport.close()
        else:
            self._idle_timer = self.loop.call_later(left_s, self._close_if_idle_long)

    def cancel_when_lost(self, future: "asyncio.Future[Any]") -> None:
        """See `connection.Connection`."""
        self._futures.append(future)

    def pause_writing(self) -> None:
        """The client does not read. Close the connection if that does not change."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.read_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP."""
        self._refuse(400, msg)

    def shutdown(self) -> None:
        """The server stops: answer the requests that are in flight or on their way, then close."""
        self._draining = True
        self.app.service.hosting.drain()
        if self._is_idle():
            self.loop.call_later(DRAIN_S, self._close_if_idle)
        elif self._awaits_response():
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()

    def _is_idle(self) -> bool:
        return self._stage == "idle" and not self._awaits_response()

    def _awaits_response(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _limit_read(self, seconds: float | None) -> None:
        """Restart the read limit; None: no limit."""
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._read_timer = self.loop.call_later(seconds, self._read_timed_out) if seconds is not None else None

    def _read_timed_out(self) -> None:
        """Answer 408 if the request has no response yet, and close."""
        self._read_timer = None
        if self.transport.is_closing():
            return
        if self._stage == "headers" and self._awaits_response():  # the previous request is answered first
            self.cycle.keep_alive = False
            return
        self.too_slow = True
        unanswered_body = self._stage == "body" and not self.cycle.response_started
        if self._stage == "headers" or unanswered_body:
            self._refuse(RequestTimeoutError.status, f"the request was not complete within {self.read_timeout_s:g} s")
        if unanswered_body:
            self.cycle.disconnected = True  # the application learns it from `receive`
            self.cycle.message_event.set()
        self.transport.close()

    def _refuse(self, status: int, detail: str) -> None:
        """Send a problem, and close."""
        body = problem_of_status(status, detail).model_dump_json().encode()
        headers = [(b"content-type", PROBLEM_JSON.encode()), (b"content-length", b"%d" % len(body))]
        self._write(status, headers, body, close=True)
