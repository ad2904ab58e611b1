"""API keys: which of them a request shows, and whether it is one of ours. The same for FastAPI and TorchServe's handler."""

import hmac
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import SecretStr

_BEARER: Final = b"bearer "


class ApiKeys:
    """The keys that are accepted; if there are none, everything is."""

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._keys = [key.get_secret_value().encode() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def accepts(self, given: bytes) -> bool:
        """Whether it is one of the keys, or there are none."""
        # Every key is compared, each in constant time: how long it takes tells nothing about the keys.
        return not self._keys or sum(hmac.compare_digest(given, key) for key in self._keys) > 0


def given_key(headers: Mapping[bytes, bytes]) -> bytes:
    """`Authorization: Bearer KEY` or `X-Api-Key: KEY`; header names are lower case."""
    authorization = headers.get(b"authorization", b"")
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    return headers.get(b"x-api-key", b"")
