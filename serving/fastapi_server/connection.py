"""What the endpoints need of a request's connection: the body, and whether the client is still there."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol

from starlette.types import Message, Receive, Scope

from bundle.errors import BodyTooLargeError, RequestTimeoutError, TridentError
from serving.fastapi_server.models.job import Job

CONNECTION: Final = "trident.connection"  # the key of the `Connection` in the ASGI scope
CLIENT_CLOSED_REQUEST: Final = 499  # nginx's status code; it appears only in the metrics


class Connection(Protocol):
    """The connection on which a request arrived."""

    too_slow: bool  # the request did not arrive in time, and has been answered with 408

    def cancel_when_lost(self, future: "asyncio.Future[Any]") -> None:
        """Cancel the future if the client disconnects before it is done."""


class ClientDisconnectedError(Exception):
    """The client closed the connection, or was too slow and has been answered. No response can be sent."""


def status_of_lost_request(scope: Scope) -> int:
    """The status code, for the metrics, of a request that raised ClientDisconnectedError."""
    connection: Connection | None = scope.get(CONNECTION)
    too_slow = connection is not None and connection.too_slow
    return RequestTimeoutError.status if too_slow else CLIENT_CLOSED_REQUEST


def check_declared_length(content_length: bytes | None, max_body_bytes: int) -> None:
    """Check the header Content-Length, before the body is read.

    Raises:
        BodyTooLargeError: it is larger than `max_body_bytes`.
    """
    if content_length is not None and content_length.isdigit() and int(content_length) > max_body_bytes:
        raise BodyTooLargeError(f"the body has {content_length.decode()} bytes; at most {max_body_bytes} are accepted")


async def read_body(receive: Receive, max_body_bytes: int) -> bytes:
    """Read a request's body.

    Raises:
        BodyTooLargeError: it is larger than `max_body_bytes`; the rest is not read.
        ClientDisconnectedError: the client disconnected before the body was complete.
    """
    message: Message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts, size = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > max_body_bytes:
                break
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        raise ClientDisconnectedError
    if len(body) > max_body_bytes:
        raise BodyTooLargeError(f"the body has more than {max_body_bytes} bytes")
    return body


async def wait_for_jobs(
    futures: "Sequence[asyncio.Future[Job]]", connection: Connection | None
) -> list[Job | TridentError]:
    """Wait for the jobs of one request: for each the job, or its error. If all failed, raise the first error.

    Raises:
        ImageError, DeadlineExceededError: every job failed.
        ClientDisconnectedError: the client disconnected meanwhile.
    """
    if connection is not None:
        for future in futures:
            connection.cancel_when_lost(future)
    try:
        done = await asyncio.gather(*futures, return_exceptions=True)
    finally:
        for future in futures:
            future.cancel()
    results: list[Job | TridentError] = []
    for one in done:
        if isinstance(one, asyncio.CancelledError):
            raise ClientDisconnectedError
        if not isinstance(one, Job | TridentError):
            raise one
        results.append(one)
    first = results[0]
    if isinstance(first, TridentError) and all(isinstance(one, TridentError) for one in results):
        raise first
    return results
