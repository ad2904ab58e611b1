"""Health, metadata and model configuration."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from bundle.errors import UnavailableError
from serving.fastapi_server.dependencies import ADMITTED, TheService
from serving.fastapi_server.oip.served_model import find_served
from serving.fastapi_server.problems import documented

router = APIRouter(prefix="/v2")
_TAG = "open inference protocol"


@router.get("/health/live", tags=["health"])
async def live() -> dict[str, bool]:
    """The process responds."""
    return {"live": True}


@router.get("/health/ready", tags=["health"], responses=documented(503))
async def ready(service: TheService) -> dict[str, bool]:
    """All worker processes have loaded every model and checked it against its golden answers, and the server is not
    stopping.
    """
    if not (service.hosting.ready and service.agreement.complete):
        raise UnavailableError("the models are not ready, or the server is stopping", retry_after_s=1)
    return {"ready": True}


@router.get("", tags=[_TAG])
async def server_metadata() -> dict[str, Any]:
    """The server's name, version and protocol extensions."""
    return {"name": "trident-fastapi", "version": "2", "extensions": ["binary_tensor_data", "model_repository"]}


@router.get("/models/{model}", tags=[_TAG], responses=documented(404, 503))
@router.get("/models/{model}/versions/{version}", tags=[_TAG], responses=documented(404, 503))
async def model_metadata(service: TheService, model: str, version: str | None = None) -> dict[str, Any]:
    """The versions, inputs and outputs of a model."""
    served = find_served(service.hosting, model, version)
    base = served.hosted.bundle.manifest.model
    return {
        "name": model,
        "versions": [str(number) for number in service.hosting.versions(base)],
        "platform": served.platform(service.settings.runtime),
        "inputs": [asdict(served.input)],
        "outputs": [asdict(served.output)],
    }


@router.get("/models/{model}/config", tags=[_TAG], dependencies=ADMITTED, responses=documented(401, 404, 429, 503))
@router.get(
    "/models/{model}/versions/{version}/config",
    tags=[_TAG],
    dependencies=ADMITTED,
    responses=documented(401, 404, 429, 503),
)
async def model_config(service: TheService, model: str, version: str | None = None) -> dict[str, Any]:
    """The settings that the model runs with, in the format of Triton's model configuration extension."""
    served, settings = find_served(service.hosting, model, version), service.settings
    parameters = {
        "intra_op_thread_count": settings.threads,
        "precision": settings.precision,
        "queue_size": settings.queue_size,
        "request_timeout_s": settings.request_timeout_s,
        "max_body_bytes": settings.max_body_bytes,
        "max_image_pixels": settings.max_image_pixels,
        "batches_run_on": served.hosted.batcher.placement.place,
    }
    return {
        "name": model,
        "platform": served.platform(settings.runtime),
        "max_batch_size": settings.max_batch_size,
        "dynamic_batching": {"max_queue_delay_microseconds": round(settings.queue_delay_ms * 1000)},
        "instance_group": [{"count": settings.workers}],
        "parameters": {key: {"string_value": str(value)} for key, value in parameters.items()},
    }


@router.get("/models/{model}/ready", tags=["health"], responses=documented(404, 503))
@router.get("/models/{model}/versions/{version}/ready", tags=["health"], responses=documented(404, 503))
async def model_ready(service: TheService, model: str, version: str | None = None) -> dict[str, Any]:
    """The model is loaded."""
    find_served(service.hosting, model, version)
    return {"name": model, "ready": True}
