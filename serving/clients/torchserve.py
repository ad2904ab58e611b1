"""TorchServe with Trident's handler, as its clients see it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from bundle.schemas import Prediction
from serving.clients.dialect import Dialect, StageCounters
from serving.clients.endpoint import Endpoint
from serving.clients.grpc_wire import GrpcWire
from serving.clients.http_wire import HttpRequest, Wire, image_headers, parse_prediction


@dataclass(frozen=True)
class TorchserveWire:
    """`POST /predictions/<model>/<version>`."""

    model: str
    version: int | None = None

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """The image as the body."""
        path = f"/predictions/{self.model}" + (f"/{self.version}" if self.version is not None else "")
        return HttpRequest(path, image_headers(top_k), image)

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """The body is the prediction."""
        return parse_prediction(status, body, body)


class TorchserveDialect(Dialect):
    """HTTP and gRPC. `/ping` is its only health endpoint."""

    health_paths: ClassVar[tuple[str, ...]] = ("/ping",)
    reports_model_readiness: ClassVar[bool] = False
    request_counter: ClassVar[str] = "ts_inference_requests_total"

    def http(self, model: str, version: int | None = None) -> Wire:
        """`POST /predictions`."""
        return TorchserveWire(model, version)

    def grpc(self, model: str, version: int | None = None) -> GrpcWire:
        """`Predictions` of the inference API."""
        from serving.clients.torchserve_grpc import TorchserveGrpcWire

        return TorchserveGrpcWire(model, version)

    def stage_counters(self, endpoint: Endpoint, model: str, version: int | None) -> StageCounters:
        """Queue and handler. TorchServe's inference latency is the whole request as its frontend sees it."""
        from serving.clients.metrics import samples

        totals: dict[str, float] = {}
        for name, labels, value in samples(endpoint.metrics_url):
            if labels.get("model_name") == model:
                totals[name] = totals.get(name, 0.0) + value
        requests = totals["ts_inference_requests_total"]
        queue = totals["ts_queue_latency_microseconds_total"] / 1e6
        whole = totals["ts_inference_latency_microseconds_total"] / 1e6
        return {"queue": (queue, requests), "handler": (whole - queue, requests)}


DIALECT: Final = TorchserveDialect()
