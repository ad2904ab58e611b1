"""TorchServe's gRPC inference API."""

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from pydantic import ValidationError

from bundle.schemas import Prediction, Problem
from serving.clients.http_wire import GarbledError, RefusedError
from serving.clients.torchserve_messages import PREDICTIONS, PredictionResponse, PredictionsRequest


@dataclass(frozen=True)
class TorchserveGrpcWire:
    """`Predictions`. TorchServe passes no metadata to handlers, so everything is an input."""

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
        """The answer's JSON. TorchServe reports problems with code OK too."""
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
