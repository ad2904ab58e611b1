"""Triton with Trident's model repository, as its clients see it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from bundle.schemas import Prediction
from serving.clients.dialect import Dialect, StageCounters, TensorModel
from serving.clients.endpoint import Endpoint
from serving.clients.grpc_wire import GrpcWire
from serving.clients.http_wire import GarbledError, HttpRequest, Wire, image_headers, parse_prediction

_HEADER_LENGTH: Final = "inference-header-content-length"
_QUEUE_US: Final = "nv_inference_queue_duration_us"


def triton_model(model: str, version: int | None) -> str:
    """Triton's name for a model's default version, or for exactly `version`."""
    return model if version is None else f"{model}_v{version}"


@dataclass(frozen=True)
class TritonWire:
    """`POST /v2/models/<name>/infer`: a raw binary request for the one BYTES input. `<model>` is the default version,
    `<model>_v<version>` a certain one.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
    """

    model: str
    version: int | None = None

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """No JSON header (its length is 0), then the image."""
        path = f"/v2/models/{triton_model(self.model, self.version)}/infer"
        return HttpRequest(path, {**image_headers(top_k), _HEADER_LENGTH: "0"}, image)

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """A JSON header, then the tensor `answer`: 4 bytes of length and the answer's JSON."""
        if status != 200:
            return parse_prediction(status, b"", body)
        try:
            start = int(headers[_HEADER_LENGTH])
            length = int.from_bytes(body[start : start + 4], "little")
        except (KeyError, ValueError) as error:
            raise GarbledError(f"no binary tensor in the response: {body[:200]!r}") from error
        return parse_prediction(status, body[start + 4 : start + 4 + length], body)


class TritonDialect(Dialect):
    """HTTP and gRPC, by the Open Inference Protocol."""

    request_counter: ClassVar[str] = "nv_inference_request_success"

    def http(self, model: str, version: int | None = None) -> Wire:
        """`infer` with binary tensors."""
        return TritonWire(model, version)

    def grpc(self, model: str, version: int | None = None) -> GrpcWire:
        """`ModelInfer`."""
        from serving.clients.triton_grpc import TritonGrpcWire

        return TritonGrpcWire(triton_model(model, version))

    def backend(self, settings: Mapping[str, object]) -> str:
        """The Triton of the wheel has only the python backend."""
        return "python backend" if settings.get("triton_home", "unknown") is None else ""

    def tensor_model(self, model: str, version: int, settings: Mapping[str, object]) -> TensorModel:
        """The version's classifier. Triton's libtorch backend prescribes other names for tensors."""
        indexed = settings.get("triton_home") is not None and settings.get("runtime") == "torchscript"
        suffix = "__0" if indexed else ""
        path = f"/v2/models/{triton_model(model, version)}_classifier/versions/{version}"
        return TensorModel(path, f"image{suffix}", f"probabilities{suffix}")

    def stage_counters(self, endpoint: Endpoint, model: str, version: int | None) -> StageCounters:
        """From the metrics of the version's image model: its own, and Triton's of the queue before it."""
        from serving.clients.metrics import samples

        name = f"{triton_model(model, version)}_image"
        sums: dict[str, float] = {}
        for metric, labels, value in samples(endpoint.metrics_url):
            if labels.get("model") == name:
                sums[metric] = sums.get(metric, 0.0) + value
        images, queue_s = sums["trident_images_total"], sums[_QUEUE_US] / 1e6 + sums["trident_queue_seconds_total"]
        return {
            "decode": (sums["trident_decode_seconds_total"], images),
            "queue": (queue_s, images),
            "inference": (sums["trident_inference_seconds_total"], images),
        }


DIALECT: Final = TritonDialect()
