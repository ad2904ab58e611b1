"""Triton's gRPC inference API."""

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from pydantic import ValidationError
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from bundle.schemas import Prediction
from serving.clients.http_wire import API_KEY_HEADER, GarbledError


@dataclass(frozen=True)
class TritonGrpcWire:
    """`ModelInfer` of the Open Inference Protocol, with the image as raw contents. `ensemble`: Triton's name of it."""

    ensemble: str
    method: str = "/inference.GRPCInferenceService/ModelInfer"

    def metadata(self, api_key: str | None) -> tuple[tuple[str, str], ...]:
        """The header of Triton's restricted protocols, which has a prefix over gRPC."""
        return () if api_key is None else ((f"triton-grpc-protocol-{API_KEY_HEADER}", api_key),)

    def request(self, image: bytes, top_k: int | None = None, api_key: str | None = None) -> bytes:
        """The one BYTES input: 4 bytes of length, then the image."""
        request = ModelInferRequest(model_name=self.ensemble)
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
