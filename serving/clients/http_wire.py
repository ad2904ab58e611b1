"""A prediction over HTTP: the request and the response, without any network library.

Every server gets the same bytes: the encoded image as the raw body. They differ in the path, in the headers and in how
the answer is wrapped. The load generator sends these requests by its own transport.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import ValidationError

from bundle.errors import TridentError
from bundle.postprocess import TOP_K_HEADER
from bundle.schemas import Prediction

API_KEY_HEADER: Final = "x-api-key"


class RefusedError(TridentError):
    """The server answered with an error. `code`: its HTTP status, or the one that a gRPC code corresponds to."""

    kind = "refused"
    title = "The server refused the request"

    def __init__(self, code: int, message: str, body: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.body = body


class GarbledError(TridentError):
    """The server reported success, but its response is not a prediction."""

    kind = "garbled"
    title = "The response is not a prediction"


@dataclass(frozen=True)
class HttpRequest:
    """A POST request."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class Wire(Protocol):
    """How one server is asked for a prediction of one model."""

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """The request for the `top_k` most probable classes of an encoded image."""

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """The prediction in a response. Header names are in lower case.

        Raises:
            RefusedError, GarbledError.
        """


def image_headers(top_k: int | None) -> dict[str, str]:
    """The headers of an image as the raw body."""
    headers = {"content-type": "application/octet-stream"}
    if top_k is not None:
        headers[TOP_K_HEADER] = str(top_k)
    return headers


def parse_prediction(status: int, answer: bytes, body: bytes) -> Prediction:
    """The prediction in `answer`, which is a part of the response's `body`.

    Raises:
        RefusedError: the status is not 200.
        GarbledError: `answer` is not a prediction.
    """
    if status != 200:
        raise RefusedError(status, f"HTTP {status}: {error_reason(body)}", body)
    try:
        return Prediction.model_validate_json(answer)
    except ValidationError as error:
        raise GarbledError(f"not a prediction: {answer[:200]!r}") from error


def error_reason(body: bytes) -> str:
    """The text of an error: a problem's `detail`, Triton's `error`, TorchServe's `message`, else the body itself."""
    try:
        content = json.loads(body)
        return str(content.get("detail") or content.get("error") or content.get("message") or content)[:500]
    except (ValueError, AttributeError):
        return body[:200].decode(errors="replace")
