"""A buffer for the socket between TorchServe's frontend and a worker.

TorchServe 0.12 reads every integer and every string of a message with a system call of its own: about forty for one
request. That takes longer than a small model. With the buffer it is one or two for a whole batch. The messages stay as they
are (ts/protocol/otf_message_handler.py).
"""

import logging
import sys
from typing import Any, Final

_CHUNK: Final = 256 * 1024

log = logging.getLogger(__name__)


class SocketBuffer:
    """Reads a socket in large pieces, and hands them out in small ones. For one connection."""

    def __init__(self) -> None:
        self._data = b""
        self._position = 0

    def read(self, connection: Any, length: int) -> bytearray:
        """The next `length` bytes. Ends the process if the frontend has closed the connection, as TorchServe does."""
        end = self._position + length
        if end > len(self._data):
            self._fill(connection, length)
            end = length
        found = bytearray(self._data[self._position : end])
        self._position = end
        return found

    def _fill(self, connection: Any, length: int) -> None:
        parts = [self._data[self._position :]]
        missing = length - len(parts[0])
        while missing > 0:
            part = connection.recv(max(_CHUNK, missing))
            if not part:
                log.info("the frontend has disconnected")
                sys.exit(0)
            parts.append(part)
            missing -= len(part)
        self._data, self._position = b"".join(parts), 0


def buffer_socket() -> None:
    """Let this worker process read through a buffer. Call it between two messages: a model's `initialize` is such a moment."""
    from ts.protocol import otf_message_handler  # TorchServe's package exists only in its workers

    otf_message_handler._retrieve_buffer = SocketBuffer().read
