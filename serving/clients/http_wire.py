"""What a prediction looks like on the wire of each server: pure functions from image to request and from response to
prediction.

All three get the same bytes: the image as the raw body. They differ in path, headers, and in how the answer is
wrapped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import ValidationError

from bundle.errors import TridentError
from bundle.postprocess import TOP_K_HEADER
from bundle.schemas import Prediction
from serving.clients.endpoint import ServerName

API_KEY_HEADER: Final = "x-api-key"
_TENSOR_HEADER_LENGTH: Final = "inference-header-content-length"


class RefusedError(TridentError):
    """The server answered with an error; `code` is its HTTP status (of a gRPC error: the one that says the same)."""

    kind = "refused"
    title = "The server refused"

    def __init__(self, code: int, message: str, body: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.body = body


class GarbledError(TridentError):
    """The server answered with success, but not with a prediction."""

    kind = "garbled"
    title = "The server's answer is no prediction"


@dataclass(frozen=True)
class HttpRequest:
    """A POST."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class Wire(Protocol):
    """One server's way to ask for a prediction."""

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """The request that asks for the `top_k` most probable classes of an image."""

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """The prediction in a response; header names are lower case.

        Raises:
            RefusedError, GarbledError.
        """


@dataclass(frozen=True)
class FastapiWire:
    """`POST /predict`."""

    model: str
    version: int | None = None

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """The image as the body; model and version in the query."""
        query = f"?model={self.model}" + (f"&version={self.version}" if self.version is not None else "")
        return HttpRequest(f"/predict{query}", _headers(top_k), image)

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """The body is the prediction."""
        return _checked(status, body, body)


@dataclass(frozen=True)
class TorchserveWire:
    """`POST /predictions/<model>/<version>`."""

    model: str
    version: int | None = None

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """The image as the body."""
        path = f"/predictions/{self.model}" + (f"/{self.version}" if self.version is not None else "")
        return HttpRequest(path, _headers(top_k), image)

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """The body is the prediction."""
        return _checked(status, body, body)


@dataclass(frozen=True)
class TritonWire:
    """`POST /v2/models/<ensemble>/infer`, with a raw binary request for the one BYTES input. The default version is the
    ensemble `<model>`, each version the ensemble `<model>_v<version>`.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
    """

    model: str
    version: int | None = None

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """No JSON header (its length is 0), then the image."""
        path = f"/v2/models/{triton_model(self.model, self.version)}/infer"
        return HttpRequest(path, {**_headers(top_k), _TENSOR_HEADER_LENGTH: "0"}, image)

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """A JSON header, then the tensor `answer`: 4 bytes of length and the answer's JSON."""
        if status == 200:
            try:
                start = int(headers[_TENSOR_HEADER_LENGTH])
                length = int.from_bytes(body[start : start + 4], "little")
            except (KeyError, ValueError) as error:
                raise GarbledError(f"no binary tensor in the response: {body[:200]!r}") from error
            return _checked(status, body[start + 4 : start + 4 + length], body)
        return _checked(status, b"", body)


WIRES: Final[Mapping[ServerName, type[FastapiWire] | type[TorchserveWire] | type[TritonWire]]] = {
    "fastapi": FastapiWire,
    "torchserve": TorchserveWire,
    "triton": TritonWire,
}


def triton_model(model: str, version: int | None) -> str:
    """The name under which Triton has the default version of a model, or exactly `version`."""
    return model if version is None else f"{model}_v{version}"


def _headers(top_k: int | None) -> dict[str, str]:
    headers = {"content-type": "application/octet-stream"}
    if top_k is not None:
        headers[TOP_K_HEADER] = str(top_k)
    return headers


def _checked(status: int, answer: bytes, body: bytes) -> Prediction:
    if status != 200:
        raise RefusedError(status, f"HTTP {status}: {_reason(body)}", body)
    try:
        return Prediction.model_validate_json(answer)
    except ValidationError as error:
        raise GarbledError(f"not a prediction: {answer[:200]!r}") from error


def _reason(body: bytes) -> str:
    """The human part of an error: a problem's detail, Triton's `error`, TorchServe's `message`, else the text itself."""
    try:
        content = json.loads(body)
        return str(content.get("detail") or content.get("error") or content.get("message") or content)[:500]
    except (ValueError, AttributeError):
        return body[:200].decode(errors="replace")
