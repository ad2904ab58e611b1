"""Messages between TorchServe's frontend and a worker, read by TorchServe's own code through our buffer."""

import importlib
import socket
import struct
import threading
from typing import Any

import pytest

from serving.torchserve_server.worker_socket import SocketBuffer, buffer_socket

otf = pytest.importorskip("ts.protocol.otf_message_handler")


def text(value: bytes) -> bytes:
    return struct.pack("!i", len(value)) + value


def message(images: list[bytes], headers: int = 8) -> bytes:
    """An inference request as the frontend sends it: a batch of one request per image."""
    end = struct.pack("!i", -1)
    requests = [
        text(b"id-%d" % number)
        + b"".join(text(b"name-%d" % i) + text(b"value-%d" % i) for i in range(headers))
        + end
        + text(b"body")
        + text(b"image/png")
        + text(image)
        + end
        for number, image in enumerate(images)
    ]
    return b"I" + b"".join(requests) + end


class CountingSocket:
    """Counts the calls of `recv`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.calls = 0

    def recv(self, length: int) -> bytes:
        self.calls += 1
        return self._connection.recv(length)


@pytest.fixture
def pair() -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_messages_are_read_as_before_with_few_system_calls(pair: Any) -> None:
    ours, theirs = pair
    importlib.reload(otf)  # without the buffer, which another test may have installed
    images = [b"first", bytes(300_000), b"", b"last"]
    sent = message(images) + message([b"next"])

    def read() -> tuple[list[Any], int]:
        counting = CountingSocket(ours)
        sender = threading.Thread(target=theirs.sendall, args=(sent,))
        sender.start()
        found = [otf.retrieve_msg(counting) for _ in range(2)]
        sender.join()
        return found, counting.calls

    plain, plain_calls = read()
    buffer_socket()
    buffered, calls = read()
    assert buffered == plain
    assert [bytes(request["parameters"][0]["value"]) for request in buffered[0][1]] == images
    assert calls < plain_calls / 5


def test_a_worker_ends_when_the_frontend_disconnects(pair: Any) -> None:
    ours, theirs = pair
    buffer = SocketBuffer()
    theirs.sendall(b"abc")
    assert buffer.read(ours, 2) == b"ab"
    theirs.close()
    with pytest.raises(SystemExit) as ended:
        buffer.read(ours, 2)
    assert ended.value.code == 0
