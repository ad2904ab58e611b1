"""The Open Inference Protocol v2 over REST: health, metadata, infer, and Triton's repository extension.

A bundle `digits` appears as two models, named and shaped as Triton has them, so that a client need not know which of
the two servers it speaks to:

    digits              image: BYTES [N, 1], encoded images       -> answer: BYTES [N, 1], JSON
    digits_classifier   image: UINT8 [N, 3, H, W], pixels             -> probabilities: FP32 [N, classes]

and, as in Triton, each version as `digits_v3` and `digits_v3_classifier`.

https://github.com/open-inference/open-inference-protocol
"""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, Field, ValidationError
from pydantic.json_schema import models_json_schema
from pydantic_core import to_json

from bundle.errors import RequestError, UnavailableError, UnknownModelError, UnsupportedMediaTypeError
from bundle.postprocess import TOP_K_HEADER, answer, parse_top_k
from bundle.store import list_bundles
from serving.fastapi_server.models.batcher import Job
from serving.fastapi_server.models.fleet import Change
from serving.fastapi_server.models.hosting import HostedModel
from serving.fastapi_server.oip.tensors import (
    HEADER_LENGTH,
    Array,
    InferRequest,
    InputTensor,
    parse_infer_request,
    read_tensors,
    write_infer_response,
)
from serving.fastapi_server.predict.bodies import read_body
from serving.fastapi_server.predict.endpoint import results
from serving.fastapi_server.predict.request import time_left_s
from serving.fastapi_server.problems import documented
from serving.fastapi_server.protocol import CONNECTION
from serving.fastapi_server.service import Service

CLASSIFIER: Final = "_classifier"
_VERSIONED: Final = re.compile(r"(.+)_v([0-9]{1,9})")
_MAX_REPOSITORY_BODY: Final = 65_536
_PLATFORM: Final = {"onnxruntime": "onnxruntime_onnx", "torchscript": "pytorch_libtorch"}

router = APIRouter(prefix="/v2")


def the_service(request: Request) -> Service:
    """What the endpoints share."""
    service: Service = request.app.state.service
    return service


def admitted(request: Request) -> None:
    """Let the request in, or not: API key and concurrency."""
    the_service(request).access.admit(dict(request.scope["headers"]))


TheService = Annotated[Service, Depends(the_service)]
# The two schemes are for the documentation (`admitted` reads the headers itself), whose page then asks for the key.
KEY_SCHEMES: Final = [
    Depends(HTTPBearer(auto_error=False, description="where the server has API keys")),
    Depends(APIKeyHeader(name="X-Api-Key", auto_error=False, description="the same, in another header")),
]
Admitted = [Depends(admitted), *KEY_SCHEMES]
_SCHEMAS: Final = "#/components/schemas/{model}"
_INFER: Final[dict[str, Any]] = {
    "dependencies": Admitted,
    "response_class": Response,
    "responses": documented(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _SCHEMAS.format(model="InferRequest")},
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
Protocol = "open inference protocol"


# --- health


@router.get("/health/live", tags=["health"])
async def live() -> dict[str, bool]:
    """The process answers."""
    return {"live": True}


@router.get("/health/ready", tags=["health"], responses=documented(503))
async def ready(service: TheService) -> dict[str, bool]:
    """Every model is loaded, warmed up, and has reproduced its golden answers, in all worker processes; and the server is
    not stopping.
    """
    if not (service.hosting.ready and service.fleet.complete):
        raise UnavailableError("the models are not ready, or the server is stopping", retry_after_s=1)
    return {"ready": True}


# --- metadata


@router.get("", tags=[Protocol])
async def server_metadata() -> dict[str, Any]:
    """The server's name, version and extensions."""
    return {"name": "trident-fastapi", "version": "2", "extensions": ["binary_tensor_data", "model_repository"]}


@dataclass(frozen=True)
class Served:
    """A model as the protocol names it: a hosted one from images to answers, or its classifier alone."""

    name: str
    hosted: HostedModel
    is_classifier: bool

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """As in the metadata."""
        spec = self.hosted.bundle.manifest.input
        if self.is_classifier:
            return [{"name": "image", "datatype": "UINT8", "shape": [-1, 3, spec.height, spec.width]}]
        return [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """As in the metadata."""
        if self.is_classifier:
            classes = self.hosted.bundle.manifest.output.classes
            return [{"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]}]
        return [{"name": "answer", "datatype": "BYTES", "shape": [-1, 1]}]


def find_served(service: Service, model: str, version: str | None) -> Served:
    """The model of a path.

    Raises:
        UnknownModelError, UnavailableError.
    """
    if version is not None and not (version.isdecimal() and len(version) <= 9):
        raise UnknownModelError(f"no version {version[:20]!r} of {model}")
    number = int(version) if version is not None else None
    base, is_classifier = model, False
    if model.endswith(CLASSIFIER) and not service.hosting.versions(model):
        base, is_classifier = model.removesuffix(CLASSIFIER), True
    versioned = _VERSIONED.fullmatch(base)
    if versioned is not None and not service.hosting.versions(base):
        base, number = versioned[1], int(versioned[2])
    return Served(model, service.hosting.find(base, number), is_classifier=is_classifier)


@router.get("/models/{model}", tags=[Protocol], responses=documented(404, 503))
@router.get("/models/{model}/versions/{version}", tags=[Protocol], responses=documented(404, 503))
async def model_metadata(service: TheService, model: str, version: str | None = None) -> dict[str, Any]:
    """Versions, inputs and outputs of a model."""
    served = find_served(service, model, version)
    base = served.hosted.bundle.manifest.model
    return {
        "name": model,
        "versions": [str(number) for number in service.hosting.versions(base)],
        "platform": _PLATFORM[service.settings.runtime] if served.is_classifier else "ensemble",
        "inputs": served.inputs,
        "outputs": served.outputs,
    }


@router.get("/models/{model}/config", tags=[Protocol], dependencies=Admitted, responses=documented(401, 404, 429, 503))
@router.get(
    "/models/{model}/versions/{version}/config",
    tags=[Protocol],
    dependencies=Admitted,
    responses=documented(401, 404, 429, 503),
)
async def model_config(service: TheService, model: str, version: str | None = None) -> dict[str, Any]:
    """What the model runs with, as Triton's model configuration extension says it."""
    served, settings = find_served(service, model, version), service.settings
    parameters = {
        "intra_op_thread_count": settings.threads,
        "precision": settings.precision,
        "queue_size": settings.queue_size,
        "request_timeout_s": settings.request_timeout_s,
        "max_body_bytes": settings.max_body_bytes,
        "max_image_pixels": settings.max_image_pixels,
    }
    return {
        "name": model,
        "platform": _PLATFORM[settings.runtime] if served.is_classifier else "ensemble",
        "max_batch_size": settings.max_batch_size,
        "dynamic_batching": {"max_queue_delay_microseconds": round(settings.queue_delay_ms * 1000)},
        "instance_group": [{"count": settings.workers}],
        "parameters": {key: {"string_value": str(value)} for key, value in parameters.items()},
    }


@router.get("/models/{model}/ready", tags=["health"], responses=documented(404, 503))
@router.get("/models/{model}/versions/{version}/ready", tags=["health"], responses=documented(404, 503))
async def model_ready(service: TheService, model: str, version: str | None = None) -> dict[str, Any]:
    """200 if the model is loaded."""
    find_served(service, model, version)
    return {"name": model, "ready": True}


# --- infer


@router.post("/models/{model}/infer", tags=[Protocol], **_INFER)
@router.post("/models/{model}/versions/{version}/infer", tags=[Protocol], **_INFER)
async def infer(request: Request, service: TheService, model: str, version: str | None = None) -> Response:
    """Run a model on tensors, as JSON or in binary."""
    started = time.perf_counter()
    find_served(service, model, version)  # before the body is read
    headers = request.headers
    if headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaTypeError("compressed bodies are not accepted")
    body = await read_body(request.receive, headers.get("content-length", "").encode(), service.settings.max_body_bytes)
    served = find_served(service, model, version)  # it may have been replaced while the body was read
    asked, tensors = _read(served, body, headers.get(HEADER_LENGTH))
    for output in asked.outputs:
        if output.name != served.outputs[0]["name"]:
            raise RequestError(f"{model} has no output {output.name!r}; it has {served.outputs[0]['name']!r}")
    (_, values) = tensors[served.inputs[0]["name"]]
    longest_s = _timeout_s(asked, service.settings.request_timeout_s)
    timeout_s = time_left_s(dict(request.scope["headers"]), longest_s, started)
    batcher = served.hosted.batcher
    if served.is_classifier:
        futures = [batcher.submit(np.ascontiguousarray(values), timeout_s)]
    else:
        top_k = parse_top_k(asked.parameters.get("top_k", headers.get(TOP_K_HEADER)))
        futures = batcher.submit_all(values.ravel().tolist(), timeout_s)
    jobs = []
    for job in await results(futures, request.scope.get(CONNECTION)):
        if not isinstance(job, Job):
            raise job  # the first that fails fails the request, as in Triton
        jobs.append(job)
    return _written(served, asked, _probabilities(jobs) if served.is_classifier else _answers(served, jobs, top_k))


def _read(
    served: Served, body: bytes, header_length: str | None
) -> tuple[InferRequest, dict[str, tuple[InputTensor, Array]]]:
    expected = served.inputs[0]
    if header_length == "0":  # a raw request: no JSON, the body is the one input
        shape = [1, *expected["shape"][1:]]
        tensor = InputTensor(name=expected["name"], shape=shape, datatype=expected["datatype"])
        asked = InferRequest(inputs=[tensor], parameters={"binary_data_output": True})
        raw = np.array([[body]], dtype=np.object_) if tensor.datatype == "BYTES" else np.frombuffer(body, np.uint8)
        if raw.size != np.prod(shape):
            raise RequestError(f"input {tensor.name!r} of shape {shape} needs {np.prod(shape)} bytes, not {len(body)}")
        return asked, {tensor.name: (tensor, raw.reshape(shape))}
    asked, binary = parse_infer_request(body, header_length)
    tensors = read_tensors(asked, binary)
    if list(tensors) != [expected["name"]]:
        raise RequestError(f"{served.name} takes one input, {expected['name']!r}; got {', '.join(map(repr, tensors))}")
    tensor, values = tensors[expected["name"]]
    fits = len(tensor.shape) == len(expected["shape"]) and all(
        want in (-1, have) for want, have in zip(expected["shape"], tensor.shape, strict=True)
    )
    if tensor.datatype != expected["datatype"] or not fits or not values.size:
        raise RequestError(
            f"input {tensor.name!r} must be {expected['datatype']} {expected['shape']}, not {tensor.datatype} {tensor.shape}"
        )
    return asked, tensors


def _probabilities(jobs: Sequence[Job]) -> Array:
    (job,) = jobs
    assert job.probabilities is not None
    return job.probabilities


def _answers(served: Served, jobs: Sequence[Job], top_k: int) -> Array:
    manifest = served.hosted.bundle.manifest
    texts = []
    for job in jobs:
        assert job.probabilities is not None
        texts.append(to_json(answer(job.probabilities[0], manifest.model, manifest.version, manifest.labels, top_k)))
    return np.array(texts, dtype=np.object_).reshape(-1, 1)


def _timeout_s(asked: InferRequest, default_s: float) -> float:
    """Triton's request parameter `timeout`, in microseconds."""
    timeout_us = asked.parameters.get("timeout")
    if timeout_us is None:
        return default_s
    if not isinstance(timeout_us, int) or not 1 <= timeout_us <= 10**12:
        raise RequestError("the parameter `timeout` must be a number of microseconds")
    return min(timeout_us / 1e6, default_s)


def _written(served: Served, asked: InferRequest, result: Array) -> Response:
    output = served.outputs[0]
    head = {"model_name": served.name, "model_version": str(served.hosted.bundle.manifest.version)}
    if asked.id:
        head["id"] = asked.id
    tensor = (output["name"], output["datatype"], result, asked.wants_binary(output["name"]))
    body, header_length = write_infer_response(head, [tensor])
    if header_length is None:
        return Response(body, media_type="application/json")
    return Response(body, headers={HEADER_LENGTH: str(header_length)}, media_type="application/octet-stream")


# --- repository


class LoadParameters(BaseModel):
    """What the load and unload requests may carry beyond the protocol: which version, and whether it is to be the
    default.
    """

    version: int | None = Field(default=None, ge=1)
    make_default: bool = True


class RepositoryRequest(BaseModel):
    """The body of load and unload; may be left out."""

    parameters: LoadParameters = LoadParameters()


# The bodies are read by hand, so FastAPI does not know their schemas.
BODY_SCHEMAS: Final[dict[str, Any]] = models_json_schema(
    [(InferRequest, "validation"), (RepositoryRequest, "validation")], ref_template=_SCHEMAS
)[1]["$defs"]
_CHANGE: Final[dict[str, Any]] = {
    "dependencies": Admitted,
    "responses": documented(400, 401, 404, 408, 413, 429, 503),
    "openapi_extra": {
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {"$ref": _SCHEMAS.format(model="RepositoryRequest")},
                    "example": {"parameters": {"version": 2, "make_default": True}},
                }
            }
        }
    },
}


async def _load_parameters(request: Request) -> LoadParameters:
    """From the body; by hand, because tritonclient sends its JSON without a Content-Type."""
    body = await read_body(request.receive, b"", _MAX_REPOSITORY_BODY)
    try:
        return RepositoryRequest.model_validate_json(body or b"{}").parameters
    except ValidationError as error:
        raise RequestError(f"the body is malformed: {error.errors()[0]['msg']}") from error


@router.post("/repository/index", tags=["model repository"], dependencies=Admitted, responses=documented(401, 429))
async def repository_index(service: TheService) -> list[dict[str, str]]:
    """Every bundle there is, and every model that is loaded."""
    there = set(await asyncio.to_thread(list_bundles, service.settings.bundles))
    loaded = {(hosted.bundle.manifest.model, hosted.bundle.manifest.version) for hosted in service.hosting.all()}
    return [
        {
            "name": name,
            "version": str(version),
            "state": "READY" if (name, version) in loaded else "UNAVAILABLE",
            "reason": "",
        }
        for name, version in sorted(there | loaded)
    ]


@router.post("/repository/models/{model}/load", tags=["model repository"], **_CHANGE)
async def load_model(request: Request, service: TheService, model: str) -> dict[str, str]:
    """Load a version (default: the highest) beside what is loaded, and let it answer once it has given golden answers."""
    wanted = await _load_parameters(request)
    await service.fleet.apply(
        Change(action="load", model=model, version=wanted.version, make_default=wanted.make_default)
    )
    return {}


@router.post("/repository/models/{model}/unload", tags=["model repository"], **_CHANGE)
async def unload_model(request: Request, service: TheService, model: str) -> dict[str, str]:
    """Let a version (default: all) of a model answer what it has taken, then drop it."""
    wanted = await _load_parameters(request)
    await service.fleet.apply(Change(action="unload", model=model, version=wanted.version))
    return {}
