"""POST /predict: picture bytes in, top-k answer out."""

import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from serving.errors import TridentError
from serving.fastapi_server.bodies import ImageJson, read_pictures
from serving.fastapi_server.hosting import Classified, Hosting
from serving.fastapi_server.metrics import Metrics
from serving.postprocess import TOP_K_HEADER, answer, parse_top_k
from serving.schemas import Prediction, Problem
from serving.settings import ServingSettings

UNKNOWN_MODEL: Final = "-"  # metrics label of requests that named no model of ours

router = APIRouter(tags=["predict"])

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
# The body is read by hand, in three forms; this describes them to /docs.
_REQUEST_BODY: Final = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary", "description": "the picture"}},
            }
        },
        "image/jpeg": _BINARY,
        "image/png": _BINARY,
        "application/octet-stream": _BINARY,
        "application/json": {"schema": ImageJson.model_json_schema()},
    },
}
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Problem, "content": {"application/problem+json": {}}, "description": description}
    for status, description in {
        400: "malformed request",
        404: "unknown model or version",
        413: "too many bytes or pixels",
        415: "not a picture type",
        422: "the picture cannot be decoded",
        429: "the queue is full; see Retry-After",
        503: "not ready, or draining; see Retry-After",
        504: "no answer in time",
    }.items()
}


@router.post("/predict", response_model=Prediction, responses=_PROBLEMS, openapi_extra={"requestBody": _REQUEST_BODY})
async def predict(
    request: Request,
    top_k: Annotated[
        int | None, Query(ge=1, description="how many classes to answer with; also as header X-Top-K")
    ] = None,
    model: Annotated[str | None, Query(description="the model; by default the first one that was deployed")] = None,
    version: Annotated[int | None, Query(ge=1, description="its version; by default the highest")] = None,
) -> Response:
    """Classify one picture: send it as the body, as multipart field `file`, or as JSON `{"image_b64": ...}`."""
    hosting: Hosting = request.app.state.hosting
    metrics: Metrics = request.app.state.metrics
    settings: ServingSettings = request.app.state.settings
    started = time.perf_counter()
    name, code = UNKNOWN_MODEL, 500
    metrics.in_flight.inc()
    try:
        wanted = top_k or parse_top_k(request.headers.get(TOP_K_HEADER))
        hosted = hosting.find(model, version)
        manifest = hosted.bundle.manifest
        name = manifest.model
        (picture,) = await read_pictures(request, settings.max_body_bytes)
        classified = await hosted.classify(picture)
        body = answer(classified.probabilities, name, manifest.version, manifest.labels, wanted)
        code = 200
        _observe_stages(metrics, name, classified)
        return Response(to_json(body), 200, {"Server-Timing": _server_timing(classified, started)}, "application/json")
    except TridentError as error:
        code = error.status
        raise
    finally:
        metrics.in_flight.dec()
        metrics.requests.labels(name, str(code)).inc()
        metrics.request_seconds.labels(name).observe(time.perf_counter() - started)


def _observe_stages(metrics: Metrics, name: str, classified: Classified) -> None:
    metrics.stage_seconds.labels(name, "queue").observe(classified.queue_s)
    metrics.stage_seconds.labels(name, "decode").observe(classified.decode_s)
    metrics.stage_seconds.labels(name, "inference").observe(classified.inference_s)


def _server_timing(classified: Classified, started: float) -> str:
    """https://www.w3.org/TR/server-timing/; durations in milliseconds."""
    stages = {
        "decode": classified.decode_s,
        "queue": classified.queue_s,
        "inference": classified.inference_s,
        "total": time.perf_counter() - started,
    }
    return ", ".join(f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in stages.items())
