"""What a prediction looks like over gRPC: pure functions from image to a call's bytes and back.

Bytes and not message objects, so that any gRPC library (and any event loop) can send them: a unary call of `method`
with no serialisers. FastAPI has no gRPC.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.message import DecodeError
from pydantic import ValidationError
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from bundle.errors import DeploymentError
from bundle.schemas import Prediction, Problem
from serving.clients.endpoint import ServerName
from serving.clients.http_wire import API_KEY_HEADER, GarbledError, RefusedError, triton_model
from serving.clients.torchserve_messages import PREDICTIONS, PredictionResponse, PredictionsRequest

# The HTTP status that says the same as a gRPC code (google/rpc/code.proto lists the mapping).
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
    """The HTTP status of a gRPC error. TorchServe calls a model that it does not know INTERNAL, Triton a wrong key
    UNAVAILABLE.
    """
    if "Model not found" in details or "Model version" in details:
        return 404
    if "This protocol is restricted" in details:
        return 403
    return _HTTP_STATUS.get(code, 500)


class GrpcWire(Protocol):
    """One server's way to ask for a prediction."""

    @property
    def method(self) -> str:
        """The full name of the unary call."""

    def metadata(self, api_key: str | None) -> tuple[tuple[str, str], ...]:
        """What goes along with every call."""

    def request(self, image: bytes, top_k: int | None = None, api_key: str | None = None) -> bytes:
        """The serialised request."""

    def prediction(self, response: bytes) -> Prediction:
        """The prediction in a serialised response.

        Raises:
            RefusedError, GarbledError.
        """


@dataclass(frozen=True)
class TorchserveGrpcWire:
    """`Predictions`. TorchServe hands no metadata to handlers, so all that belongs to a request is an input."""

    model: str
    version: int | None = None
    method: str = PREDICTIONS

    def metadata(self, api_key: str | None) -> tuple[tuple[str, str], ...]:
        """None: see the class."""
        return ()

    def request(self, image: bytes, top_k: int | None = None, api_key: str | None = None) -> bytes:
        """The inputs `data`, `top_k` and `api_key`."""
        inputs = {"data": image}
        if top_k is not None:
            inputs["top_k"] = str(top_k).encode()
        if api_key is not None:
            inputs["api_key"] = api_key.encode()
        version = None if self.version is None else str(self.version)
        serialised: bytes = PredictionsRequest(
            model_name=self.model, model_version=version, input=inputs
        ).SerializeToString()
        return serialised

    def prediction(self, response: bytes) -> Prediction:
        """The answer's JSON; or a problem, for TorchServe says OK to those too."""
        try:
            text: bytes = PredictionResponse.FromString(response).prediction
        except DecodeError as error:
            raise GarbledError(f"not a PredictionResponse: {response[:200]!r}") from error
        try:
            return Prediction.model_validate_json(text)
        except ValidationError as error:
            try:
                found = Problem.model_validate_json(text)
            except ValidationError:
                raise GarbledError(f"not a prediction: {text[:200]!r}") from error
            raise RefusedError(found.status, f"gRPC OK with problem {found.status}: {found.detail}") from error


@dataclass(frozen=True)
class TritonGrpcWire:
    """`ModelInfer` of the Open Inference Protocol, with the image as raw contents."""

    model: str
    version: int | None = None
    method: str = "/inference.GRPCInferenceService/ModelInfer"

    def metadata(self, api_key: str | None) -> tuple[tuple[str, str], ...]:
        """The header of Triton's restricted protocols, which has a prefix over gRPC."""
        return () if api_key is None else ((f"triton-grpc-protocol-{API_KEY_HEADER}", api_key),)

    def request(self, image: bytes, top_k: int | None = None, api_key: str | None = None) -> bytes:
        """The one BYTES input: 4 bytes of length, then the image."""
        request = ModelInferRequest(model_name=triton_model(self.model, self.version))
        if top_k is not None:
            request.parameters["top_k"].int64_param = top_k
        request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(len(image).to_bytes(4, "little") + image)
        serialised: bytes = request.SerializeToString()
        return serialised

    def prediction(self, response: bytes) -> Prediction:
        """The output `answer`: 4 bytes of length, then the answer's JSON."""
        try:
            raw: bytes = ModelInferResponse.FromString(response).raw_output_contents[0]
            return Prediction.model_validate_json(raw[4 : 4 + int.from_bytes(raw[:4], "little")])
        except (DecodeError, IndexError, ValidationError) as error:
            raise GarbledError(f"not a prediction: {response[:200]!r}") from error


def grpc_wire(server: ServerName, model: str, version: int | None = None) -> GrpcWire:
    """The wire of a server.

    Raises:
        DeploymentError: it has no gRPC.
    """
    if server == "torchserve":
        return TorchserveGrpcWire(model, version)
    if server == "triton":
        return TritonGrpcWire(model, version)
    raise DeploymentError(f"{server} does not speak gRPC; ask it over HTTP")
