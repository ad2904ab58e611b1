"""A prediction over gRPC: serialised messages, without any gRPC library.

Bytes instead of message objects, so that any gRPC library and any event loop can send them: a unary call of `method`
without serialisers.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from bundle.schemas import Prediction

# The HTTP status that a gRPC code corresponds to (google/rpc/code.proto).
_HTTP_STATUS: Final[Mapping[str, int]] = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def http_status(code: str, details: str) -> int:
    """The HTTP status of a gRPC error.

    TorchServe reports an unknown model as INTERNAL, Triton a wrong key as UNAVAILABLE.
    """
    if "Model not found" in details or "Model version" in details:
        return 404
    if "This protocol is restricted" in details:
        return 403
    return _HTTP_STATUS.get(code, 500)


class GrpcWire(Protocol):
    """How one server is asked for a prediction of one model."""

    @property
    def method(self) -> str:
        """The full name of the unary call."""

    def metadata(self, api_key: str | None) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""

    def request(self, image: bytes, top_k: int | None = None, api_key: str | None = None) -> bytes:
        """The serialised request."""

    def prediction(self, response: bytes) -> Prediction:
        """The prediction in a serialised response.

        Raises:
            RefusedError, GarbledError.
        """
