"""The request headers that every endpoint understands. Header names are lower case."""

import itertools
import os
import re
import time
from collections.abc import Mapping
from typing import Final

from bundle.errors import DeadlineExceededError, RequestError

TIMEOUT_HEADER: Final = b"x-request-timeout-ms"
REQUEST_ID_HEADER: Final = b"x-request-id"
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_request_numbers: Final = itertools.count(int.from_bytes(os.urandom(5)) << 24)


def time_left_s(headers: Mapping[bytes, bytes], timeout_s: float, started: float) -> float:
    """The time until the request's deadline: `timeout_s` after `started` (`time.perf_counter()`), or earlier if the
    header X-Request-Timeout-Ms demands it.

    Raises:
        RequestError: the header is not a positive number of milliseconds.
        DeadlineExceededError: no time is left.
    """
    given = headers.get(TIMEOUT_HEADER)
    if given is not None:
        if not given.isdigit() or len(given) > 9 or int(given) < 1:
            raise RequestError(
                f"{TIMEOUT_HEADER.decode()} must be a positive number of milliseconds, not {given[:20]!r}"
            )
        timeout_s = min(int(given) / 1000, timeout_s)
    left_s = timeout_s - (time.perf_counter() - started)
    if left_s <= 0:
        raise DeadlineExceededError("the deadline passed while the request was read")
    return left_s


def request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """The id from the header X-Request-Id, or a new one if it is missing, too long or not printable ASCII."""
    given = headers.get(REQUEST_ID_HEADER)
    return given if given and _REQUEST_ID.fullmatch(given) else b"%016x" % next(_request_numbers)
