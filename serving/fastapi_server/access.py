"""Who may ask, and how many at once."""

import hmac
from collections.abc import Mapping
from typing import Final

from serving.errors import OverloadedError, UnauthorizedError
from serving.settings import ServingSettings

_BEARER: Final = b"bearer "


class Access:
    """API keys (if the settings have any) and the bound on requests under way. One per process."""

    def __init__(self, settings: ServingSettings) -> None:
        self.under_way = 0
        self._limit = settings.max_concurrent_requests
        self._keys = [key.get_secret_value().encode() for key in settings.api_keys]

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Let a request in, or not. Header names are lower case.

        Raises:
            UnauthorizedError: there are keys, and the request has none of them.
            OverloadedError: too many requests are under way.
        """
        if self._keys and not self._knows(headers):
            raise UnauthorizedError("send an API key as `Authorization: Bearer KEY` or `X-Api-Key: KEY`")
        if self.under_way > self._limit:
            raise OverloadedError(f"{self._limit} requests are under way already", retry_after_s=1)

    def _knows(self, headers: Mapping[bytes, bytes]) -> bool:
        given = headers.get(b"x-api-key", b"")
        authorization = headers.get(b"authorization", b"")
        if authorization[: len(_BEARER)].lower() == _BEARER:
            given = authorization[len(_BEARER) :].strip()
        # Every key is compared, each in constant time: how long it takes tells nothing about the keys.
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0
