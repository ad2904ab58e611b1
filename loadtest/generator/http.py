"""One cheap HTTP/1.1 connection: it sends prepared requests and parses responses with httptools.

A gevent socket and a C parser cost a fifth of a general HTTP client, and the generator's own cost is part of every
latency. The connection also records the time of the first byte.
"""

import socket
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

from loadtest.errors import TransportError
from serving.clients.http_wire import API_KEY_HEADER, HttpRequest

_READ = 1 << 18


@dataclass(slots=True)
class Response:
    """A response. Times are perf_counter nanoseconds; 0: not received."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    sent_ns: int = 0
    first_byte_ns: int = 0
    done_ns: int = 0

    def header(self, name: bytes) -> bytes:
        """The value of a header; empty if it is missing."""
        return next((value for key, value in self.headers if key.lower() == name), b"")

    def lower_headers(self) -> dict[str, str]:
        """All headers, with lower-case names."""
        return {key.lower().decode("latin-1"): value.decode("latin-1") for key, value in self.headers}


def prepare(request: HttpRequest, url: str, api_key: str | None = None, content_length: int | None = None) -> bytes:
    """Serialise a request to the server at `url`. `content_length`: declared instead of the body's own length."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path.rstrip('/')}{request.path} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    if api_key is not None:
        lines.append(f"{API_KEY_HEADER}: {api_key}")
    lines += [f"Content-Length: {len(request.body) if content_length is None else content_length}", "", ""]
    return "\r\n".join(lines).encode() + request.body


class HttpConnection:
    """A kept connection to the server at `url`, opened by the first request."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._response = Response()
        self._body: list[bytes] = []
        self._complete = False
        self._keep_alive = False
        self._parser: httptools.HttpResponseParser

    def send(self, request: bytes) -> Response:
        """Send a request, and read the response. Reconnects if the server has closed the kept connection.

        Raises:
            TransportError: refused, reset, timed out, or not HTTP.
        """
        kept = self._socket is not None
        sent_ns = time.perf_counter_ns()
        try:
            try:
                return self._send(request, sent_ns)
            except (ConnectionError, _ClosedEarly):
                if not kept or self._response.first_byte_ns:
                    raise
                self.close()
                return self._send(request, sent_ns)
        except (OSError, _ClosedEarly, httptools.HttpParserError) as error:
            self.close()
            name = "timed out" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            raise TransportError(name, sent_ns) from error

    def abort(self, request: bytes, after_s: float) -> Response:
        """Send a request on a new connection, and close it after `after_s` without reading the response.

        Raises:
            TransportError: the connection failed before that.
        """
        self.close()
        sent_ns = time.perf_counter_ns()
        try:
            self._connect().sendall(request)
        except OSError as error:
            raise TransportError(f"{type(error).__name__}: {error}", sent_ns) from error
        finally:
            time.sleep(after_s)
            self.close()
        return Response(sent_ns=sent_ns, done_ns=time.perf_counter_ns())

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, request: bytes, sent_ns: int) -> Response:
        response = self._response = Response(sent_ns=sent_ns)
        self._body = []
        self._complete = self._keep_alive = False
        connection = self._socket or self._connect()
        self._parser = httptools.HttpResponseParser(self)
        feed = self._parser.feed_data
        connection.sendall(request)
        data = connection.recv(_READ)
        response.first_byte_ns = time.perf_counter_ns() if data else 0
        while data:
            feed(data)
            if self._complete:
                break
            data = connection.recv(_READ)
        else:
            raise _ClosedEarly("the server closed the connection before the response was complete")
        response.done_ns = time.perf_counter_ns()
        response.status = self._parser.get_status_code()
        response.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if not self._keep_alive:
            self.close()
        return response

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, self._timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_hostname=self._address[0])
        self._socket = connection
        return connection

    # Callbacks of the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Append a header."""
        self._response.headers.append((name, value))

    def on_body(self, data: bytes) -> None:
        """Append a part of the body."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Finish the response. The parser knows only now whether the connection can be kept; then it resets itself."""
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()


class _ClosedEarly(Exception):
    pass
