"""Admission: which requests may enter, and how many at the same time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bundle.errors import OverloadedError, UnauthorizedError
from serving.api_keys import ApiKeys, given_key
from serving.settings import ServingSettings


class Admission:
    """The API keys (if there are any) and the limit on requests in flight. One per process."""

    def __init__(self, settings: ServingSettings) -> None:
        self.in_flight = 0
        self._limit = settings.max_concurrent_requests
        self._keys = ApiKeys(settings.api_keys)

    def enter(self, headers: Mapping[bytes, bytes]) -> None:
        """Admit a request. It is in flight until `leave`. Header names are lower case.

        Raises:
            UnauthorizedError: the request has no accepted API key.
            OverloadedError: too many requests are in flight.
        """
        if self._keys and not self._keys.accepts(given_key(headers)):
            raise UnauthorizedError("send an API key as `Authorization: Bearer KEY` or `X-Api-Key: KEY`")
        if self.in_flight >= self._limit:
            raise OverloadedError(f"{self._limit} requests are in flight", retry_after_s=1)
        self.in_flight += 1

    def leave(self) -> None:
        """The admitted request has been answered or abandoned."""
        self.in_flight -= 1

    @contextmanager
    def admit(self, headers: Mapping[bytes, bytes]) -> Iterator[None]:
        """`enter` and `leave` around a block."""
        self.enter(headers)
        try:
            yield
        finally:
            self.leave()
