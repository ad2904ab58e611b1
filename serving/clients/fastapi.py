"""Trident's FastAPI service, as its clients see it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from bundle.schemas import Prediction
from serving.clients.dialect import Dialect, StageCounters, TensorModel
from serving.clients.endpoint import Endpoint
from serving.clients.http_wire import HttpRequest, Wire, image_headers, parse_prediction


@dataclass(frozen=True)
class FastapiWire:
    """`POST /predict`."""

    model: str
    version: int | None = None

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """The image as the body; model and version in the query."""
        query = f"?model={self.model}" + (f"&version={self.version}" if self.version is not None else "")
        return HttpRequest(f"/predict{query}", image_headers(top_k), image)

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """The body is the prediction."""
        return parse_prediction(status, body, body)


class FastapiDialect(Dialect):
    """HTTP only; the service also speaks the Open Inference Protocol."""

    request_counter: ClassVar[str] = "trident_requests_total"

    def http(self, model: str, version: int | None = None) -> Wire:
        """`POST /predict`."""
        return FastapiWire(model, version)

    def hint(self, endpoint: Endpoint) -> str:
        """An upload by curl, and the page to do it in a browser."""
        return f"[bold]curl -F file=@image.png {endpoint.url}/predict[/], or open {endpoint.url}/docs"

    def tensor_model(self, model: str, version: int, settings: Mapping[str, object]) -> TensorModel:
        """The classifier behind `/v2`."""
        return TensorModel(f"/v2/models/{model}_classifier/versions/{version}")

    def stage_counters(self, endpoint: Endpoint, model: str, version: int | None) -> StageCounters:
        """From the histograms `trident_stage_duration_seconds`."""
        from serving.clients.metrics import samples

        found: dict[str, list[float]] = {}
        for name, labels, value in samples(endpoint.metrics_url):
            if name.startswith("trident_stage_duration_seconds_") and labels.get("model") == model:
                entry = found.setdefault(labels["stage"], [0.0, 0.0])
                if name.endswith("_sum"):
                    entry[0] += value
                elif name.endswith("_count"):
                    entry[1] += value
        return {stage: (seconds, count) for stage, (seconds, count) in found.items()}


DIALECT: Final = FastapiDialect()
