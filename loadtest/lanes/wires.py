"""Requests and responses of the lanes that the clients in `serving.clients` do not cover."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

from bundle.schemas import Prediction
from serving.clients.grpc_wire import GrpcWire
from serving.clients.http_wire import GarbledError, HttpRequest, RefusedError, image_headers, parse_prediction


@dataclass(frozen=True)
class CallWire:
    """A gRPC call in its HTTP/2 form: a POST of a serialised message to the method's path."""

    call: GrpcWire

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """Serialise the call."""
        return HttpRequest(self.call.method, dict(self.call.metadata(None)), self.call.request(image, top_k))

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """Parse the serialised response."""
        if status != 200:
            raise RefusedError(status, f"gRPC, as HTTP {status}: {body[:200].decode(errors='replace')}")
        return self.call.prediction(body)


@dataclass(frozen=True)
class ImageWire:
    """An image as the body of a POST to `path`; the answer is a `Prediction` in JSON."""

    path: str

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """Send the image without parameters in the query."""
        return HttpRequest(self.path, image_headers(top_k), image)

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """Parse the body; a third-party server need not name its model."""
        return parse_prediction(status, _with_model(body) if status == 200 else body, body)


@dataclass(frozen=True)
class JsonWire:
    """An image in base64 as `field` of a JSON object, POSTed to `path`; the answer is a `Prediction` in JSON.

    Args:
        batch: the field is a list of images, and the answer a list of predictions.
    """

    path: str
    field: str
    batch: bool = False

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """Encode the image."""
        encoded = base64.b64encode(image).decode()
        body = json.dumps({self.field: [encoded] if self.batch else encoded}).encode()
        return HttpRequest(self.path, {"content-type": "application/json"}, body)

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """Parse the body; of a list, its one element."""
        if status == 200 and self.batch:
            try:
                (answer,) = json.loads(body)
            except ValueError as error:
                raise GarbledError(f"not a list of one prediction: {body[:200]!r}") from error
            body = json.dumps(answer).encode()
        return parse_prediction(status, _with_model(body) if status == 200 else body, body)


def _with_model(body: bytes) -> bytes:
    """An answer in JSON, completed by a model and a version if it names none. They are not compared."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body
    return json.dumps({"model": "third-party", "version": 1} | answer).encode() if isinstance(answer, dict) else body
