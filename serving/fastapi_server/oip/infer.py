"""Inference requests: tensors in, tensors out."""

import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from fastapi import APIRouter, Request, Response

from bundle.errors import RequestError, UnsupportedMediaTypeError
from bundle.postprocess import TOP_K_HEADER, parse_top_k
from serving.fastapi_server.connection import CONNECTION, check_declared_length, read_body, wait_for_jobs
from serving.fastapi_server.dependencies import ADMITTED, TheService
from serving.fastapi_server.models.job import Job
from serving.fastapi_server.oip.served_model import ServedModel, find_served
from serving.fastapi_server.oip.tensors import (
    HEADER_LENGTH,
    Array,
    InferRequest,
    InputTensor,
    parse_infer_request,
    read_tensors,
    write_infer_response,
)
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
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaTypeError("compressed bodies are not accepted")
    check_declared_length(headers.get(b"content-length"), settings.max_body_bytes)
    body = await read_body(request.receive, settings.max_body_bytes)
    served = find_served(service.hosting, model, version)  # it may have been replaced meanwhile
    parsed, values = _read(served, body, request.headers.get(HEADER_LENGTH))
    timeout_s = time_left_s(headers, _timeout_s(parsed, settings.request_timeout_s), started)
    batcher = served.hosted.batcher
    if served.is_classifier:
        futures = [batcher.future(np.ascontiguousarray(values), timeout_s)]
    else:
        top_k = parse_top_k(parsed.parameters.get("top_k", request.headers.get(TOP_K_HEADER)))
        futures = batcher.futures(values.ravel().tolist(), timeout_s)
    jobs = []
    for job in await wait_for_jobs(futures, request.scope.get(CONNECTION)):
        if not isinstance(job, Job):
            raise job  # as in Triton, one failed image fails the request
        jobs.append(job)
    return _response(served, parsed, _probabilities(jobs) if served.is_classifier else _answers(served, jobs, top_k))


def _read(served: ServedModel, body: bytes, header_length: str | None) -> tuple[InferRequest, Array]:
    """The request, and the values of the model's input.

    Raises:
        RequestError: it is malformed, or does not match the model's input and output.
    """
    if header_length == "0":
        return _read_raw(served, body)
    parsed, binary = parse_infer_request(body, header_length)
    tensors = read_tensors(parsed, binary)
    expected = served.input
    if list(tensors) != [expected.name]:
        raise RequestError(f"{served.name} has one input, {expected.name!r}; received {', '.join(map(repr, tensors))}")
    for output in parsed.outputs:
        if output.name != served.output.name:
            raise RequestError(f"{served.name} has no output {output.name!r}; it has {served.output.name!r}")
    tensor, values = tensors[expected.name]
    fits = len(tensor.shape) == len(expected.shape) and all(
        want in (-1, have) for want, have in zip(expected.shape, tensor.shape, strict=True)
    )
    if tensor.datatype != expected.datatype or not fits or not values.size:
        raise RequestError(
            f"input {tensor.name!r} must be {expected.datatype} {expected.shape}, not {tensor.datatype} {tensor.shape}"
        )
    return parsed, values


def _read_raw(served: ServedModel, body: bytes) -> tuple[InferRequest, Array]:
    """A raw request has no JSON: the body is the one input."""
    expected = served.input
    shape = [1, *expected.shape[1:]]
    values = np.array([[body]], dtype=np.object_) if expected.datatype == "BYTES" else np.frombuffer(body, np.uint8)
    if values.size != np.prod(shape):
        raise RequestError(f"input {expected.name!r} of shape {shape} needs {np.prod(shape)} bytes, not {len(body)}")
    tensor = InputTensor(name=expected.name, shape=shape, datatype=expected.datatype)
    return InferRequest(inputs=[tensor], parameters={"binary_data_output": True}), values.reshape(shape)


def _probabilities(jobs: Sequence[Job]) -> Array:
    (job,) = jobs
    assert job.probabilities is not None
    return job.probabilities


def _answers(served: ServedModel, jobs: Sequence[Job], top_k: int) -> Array:
    """BYTES `[images, 1]`: the JSON answer to each image."""
    texts = []
    for job in jobs:
        assert job.probabilities is not None
        texts.append(served.hosted.answers.answer(job.probabilities[0], top_k))
    return np.array(texts, dtype=np.object_).reshape(-1, 1)


def _timeout_s(parsed: InferRequest, default_s: float) -> float:
    """The time limit: Triton's request parameter `timeout`, in microseconds, but at most `default_s`."""
    timeout_us = parsed.parameters.get("timeout")
    if timeout_us is None:
        return default_s
    if not isinstance(timeout_us, int) or not 1 <= timeout_us <= 10**12:
        raise RequestError("the parameter `timeout` must be a number of microseconds")
    return min(timeout_us / 1e6, default_s)


def _response(served: ServedModel, parsed: InferRequest, result: Array) -> Response:
    output = served.output
    head = {"model_name": served.name, "model_version": str(served.hosted.bundle.manifest.version)}
    if parsed.id:
        head["id"] = parsed.id
    tensor = (output.name, output.datatype, result, parsed.wants_binary(output.name))
    body, header_length = write_infer_response(head, [tensor])
    if header_length is None:
        return Response(body, media_type="application/json")
    return Response(body, headers={HEADER_LENGTH: str(header_length)}, media_type="application/octet-stream")
