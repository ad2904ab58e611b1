"""Who may ask, and how many at once."""

from collections.abc import Mapping

from bundle.errors import OverloadedError, UnauthorizedError
from serving.api_keys import ApiKeys, given_key
from serving.settings import ServingSettings


class Access:
    """API keys (if the settings have any) and the bound on requests under way. One per process."""

    def __init__(self, settings: ServingSettings) -> None:
        self.in_flight = 0
        self._limit = settings.max_concurrent_requests
        self._keys = ApiKeys(settings.api_keys)

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Let a request in, or not. Header names are lower case.

        Raises:
            UnauthorizedError: there are keys, and the request has none of them.
            OverloadedError: too many requests are under way.
        """
        if self._keys and not self._keys.accepts(given_key(headers)):
            raise UnauthorizedError("send an API key as `Authorization: Bearer KEY` or `X-Api-Key: KEY`")
        if self.in_flight > self._limit:
            raise OverloadedError(f"{self._limit} requests are under way already", retry_after_s=1)
