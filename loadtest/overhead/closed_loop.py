"""A load generator that costs little: HTTP/1.1 on uvloop, prepared requests, kept connections, every answer checked.

Closed loop: each connection sends its next request when the answer to the last one is there. Paced: requests leave at
a constant rate, on whichever connection is free, and latency counts from the instant that the schedule says.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import uvloop


@dataclass(frozen=True)
class Call:
    """What is asked, and the label that the answer must begin with."""

    port: int
    request: bytes
    label: str


@dataclass
class Measured:
    """Latencies in seconds, of right answers; how long it took; and the first fault, if there was one."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    fault: str = ""

    @property
    def per_second(self) -> float:
        """Right answers per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """In seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def post(port: int, path: str, content_type: str, body: bytes) -> bytes:
    """An HTTP/1.1 request."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def closed_loop(call: Call, connections: int, warmup_s: float, duration_s: float) -> Measured:
    """As many requests as come back, with `connections` under way at once."""
    return uvloop.run(_closed_loop(call, connections, warmup_s, duration_s))


def paced(call: Call, per_second: float, connections: int, warmup_s: float, duration_s: float) -> Measured:
    """Requests at a constant rate."""
    return uvloop.run(_paced(call, per_second, connections, warmup_s, duration_s))


class _Connection(asyncio.Protocol):
    """One connection; `on_answer` is called with the connection and the fault ('' if there is none)."""

    def __init__(self, call: Call, known: set[bytes]) -> None:
        self._call = call
        self._known = known
        self._buffer = b""
        self.sent = 0.0
        self.on_answer: Callable[[_Connection, str], None] = _ignore
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def send(self, counts_from: float | None = None) -> None:
        """Send the request; its latency counts from now, or from the given instant."""
        assert self.transport is not None
        self.sent = counts_from if counts_from is not None else time.perf_counter()
        self.transport.write(self._call.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        start = head.lower().find(b"content-length:")
        if start < 0:
            self.on_answer(self, f"no Content-Length: {head!r}")
            return
        length = int(head[start + 15 :].split(b"\r\n", 1)[0])
        if len(body) >= length:
            self._buffer = b""
            self.on_answer(self, self._fault(head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_answer(self, f"connection lost: {exc}")

    def _fault(self, head: bytes, body: bytes) -> str:
        if not head.startswith(b"HTTP/1.1 200"):
            return f"{head.splitlines()[0]!r} {body[:200]!r}"
        if body in self._known:  # servers repeat themselves
            return ""
        answer = json.loads(body)
        answer = answer[0] if isinstance(answer, list) else answer
        if answer["predictions"][0]["label"] != self._call.label:
            return f"wrong answer: {body[:200]!r}"
        self._known.add(body)
        return ""


async def _connect(call: Call, connections: int) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    known: set[bytes] = set()
    made = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(lambda: _Connection(call, known), "127.0.0.1", call.port)
        made.append(protocol)
    return made


async def _closed_loop(call: Call, connections: int, warmup_s: float, duration_s: float) -> Measured:
    measured = Measured()
    begins = time.perf_counter() + warmup_s
    running = True

    def on_answer(connection: _Connection, fault: str) -> None:
        now = time.perf_counter()
        if not running:
            return
        if fault:
            measured.fault = measured.fault or fault
            return
        if connection.sent >= begins:
            measured.latencies.append(now - connection.sent)
        connection.send()

    made = await _connect(call, connections)
    for connection in made:
        connection.on_answer = on_answer
        connection.send()
    await asyncio.sleep(warmup_s + duration_s)
    running = False
    measured.seconds = time.perf_counter() - begins
    _close(made)
    return measured


async def _paced(call: Call, per_second: float, connections: int, warmup_s: float, duration_s: float) -> Measured:
    measured = Measured()
    loop = asyncio.get_running_loop()
    free = deque(await _connect(call, connections))
    everybody = list(free)
    due: deque[float] = deque()
    started = time.perf_counter()
    begins, ends = started + warmup_s, started + warmup_s + duration_s

    def on_answer(connection: _Connection, fault: str) -> None:
        now = time.perf_counter()
        measured.fault = measured.fault or fault
        if not fault and begins <= connection.sent < ends:
            measured.latencies.append(now - connection.sent)
        free.append(connection)
        dispatch()

    def dispatch() -> None:
        while due and free:
            free.popleft().send(due.popleft())

    def tick(number: int) -> None:
        now = time.perf_counter()
        while (instant := started + number / per_second) <= now:
            due.append(instant)
            number += 1
        dispatch()
        if now < ends:
            loop.call_later(max(0.0, started + number / per_second - time.perf_counter()), tick, number)

    for connection in everybody:
        connection.on_answer = on_answer
    tick(0)
    await asyncio.sleep(warmup_s + duration_s + 0.5)
    measured.seconds = duration_s
    unanswered = [connection.sent for connection in everybody if connection not in free] + list(due)
    now = time.perf_counter()
    measured.latencies += [now - instant for instant in unanswered if begins <= instant < ends]
    _close(everybody)
    return measured


def _close(connections: list[_Connection]) -> None:
    for connection in connections:
        connection.on_answer = _ignore
        if connection.transport is not None:
            connection.transport.close()


def _ignore(_connection: _Connection, _fault: str) -> None:
    """The run is over."""
