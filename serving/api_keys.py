"""API keys: which key a request carries, and whether it is accepted. Used by FastAPI and by TorchServe's handler."""

import hmac
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import SecretStr

_BEARER: Final = b"bearer "


class ApiKeys:
    """The accepted keys. Without keys, every request is accepted."""

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._keys = [key.get_secret_value().encode() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def accepts(self, given: bytes) -> bool:
        """Whether `given` is one of the keys, or there are no keys."""
        # Compare with every key, each in constant time: the duration reveals nothing about the keys.
        return not self._keys or sum(hmac.compare_digest(given, key) for key in self._keys) > 0


def given_key(headers: Mapping[bytes, bytes]) -> bytes:
    """The key from `Authorization: Bearer KEY` or `X-Api-Key: KEY`; empty without one. Header names are lower case."""
    authorization = headers.get(b"authorization", b"")
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    return headers.get(b"x-api-key", b"")
