"""Many requests at once: all of them are on their way before the first answer is read."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from serving.clients.grpc_wire import GrpcWire
from serving.clients.http_wire import HttpRequest
from tests.waiting import wait_until


@dataclass(frozen=True)
class Answer:
    """What came back, of what kind (an HTTP status, or a gRPC code and its details), and when."""

    code: int | str
    headers: dict[str, str]
    body: bytes
    sent: float
    came: float

    @property
    def seconds(self) -> float:
        return self.came - self.sent


@contextmanager
def in_flight(url: str, requests: Sequence[HttpRequest]) -> Iterator[Callable[[], list[Answer]]]:
    """Send, each on a connection of its own; what is handed out reads the answers, in the order of the requests."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(requests)))
        connections = [stack.enter_context(closing(HTTPConnection(urlsplit(url).netloc, timeout=60))) for _ in requests]
        for connection in connections:
            connection.connect()
        sent = []
        for connection, request in zip(connections, requests, strict=True):
            connection.request("POST", request.path, request.body, dict(request.headers))
            sent.append(time.monotonic())
        yield lambda: list(pool.map(_answer, connections, sent))


def burst(url: str, requests: Sequence[HttpRequest]) -> list[Answer]:
    """Send, and read the answers."""
    with in_flight(url, requests) as answers:
        return answers()


def unread(url: str) -> int:
    """Bytes that are on their way to a server of this machine, which it has not read yet."""
    port = f":{urlsplit(url).port:04X}"
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, _, queues = line.split()[1:5]
        sending, received = queues.split(":")
        total += int(received, 16) * local.endswith(port) + int(sending, 16) * remote.endswith(port)
    return total


def _answer(connection: HTTPConnection, sent: float) -> Answer:
    with connection.getresponse() as response:
        came = time.monotonic()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, headers, response.read(), sent, came)


def grpc_burst(address: str, wire: GrpcWire, image: bytes, count: int) -> list[Answer]:
    """The same image `count` times, over one channel."""
    sent: dict[grpc.Future, float] = {}
    came: dict[grpc.Future, float] = {}
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        ask, request = channel.unary_unary(wire.method), wire.request(image)
        for _ in range(count):
            now = time.monotonic()
            call = ask.future(request, timeout=60)
            sent[call] = now
            call.add_done_callback(lambda done: came.setdefault(done, time.monotonic()))
        wait_until(lambda: len(came) == count, 90, pause_s=0.001)
        return [Answer(call.code().name, {}, (call.details() or "").encode(), sent[call], came[call]) for call in sent]
