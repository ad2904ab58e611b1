"""The route of inference requests: tensors in, tensors out. Most requests take the fast path instead."""

import time
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from serving.fastapi_server.connection import CONNECTION, check_declared_length, read_body, wait_for_jobs
from serving.fastapi_server.dependencies import ADMITTED, TheService
from serving.fastapi_server.models.job import Job
from serving.fastapi_server.oip.request import Inference, check_encoding
from serving.fastapi_server.oip.served_model import find_served
from serving.fastapi_server.oip.tensors import HEADER_LENGTH
from serving.fastapi_server.problems import documented
from serving.fastapi_server.request_headers import time_left_s

_ROUTE: Final[dict[str, Any]] = {
    "tags": ["open inference protocol"],
    "dependencies": ADMITTED,
    "response_class": Response,
    "responses": documented(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/InferRequest"},
                    "example": {
                        "inputs": [
                            {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": ["<image in base64>"]}
                        ]
                    },
                },
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
}

router = APIRouter(prefix="/v2")


@router.post("/models/{model}/infer", **_ROUTE)
@router.post("/models/{model}/versions/{version}/infer", **_ROUTE)
async def infer(request: Request, service: TheService, model: str, version: str | None = None) -> Response:
    """Run a model on tensors, in JSON or in binary."""
    started = time.perf_counter()
    settings, headers = service.settings, dict(request.scope["headers"])
    find_served(service.hosting, model, version)  # an unknown model is refused before the body is read
    check_encoding(headers)
    check_declared_length(headers.get(b"content-length"), settings.max_body_bytes)
    body = await read_body(request.receive, settings.max_body_bytes)
    inference = Inference(find_served(service.hosting, model, version), body, headers)  # replaced meanwhile, perhaps
    timeout_s = time_left_s(headers, inference.timeout_s(settings.request_timeout_s), started)
    futures = inference.served.hosted.batcher.futures(inference.payloads, timeout_s)
    jobs = []
    for job in await wait_for_jobs(futures, request.scope.get(CONNECTION)):
        if not isinstance(job, Job):
            raise job  # as in Triton, one failed image fails the request
        jobs.append(job)
    content, header_length = inference.write(jobs)
    if header_length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER_LENGTH: str(header_length)}, media_type="application/octet-stream")
