"""Triton's model repository extension: list, load and unload models.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

import asyncio
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError

from bundle.errors import RequestError
from bundle.store import list_bundles
from serving.fastapi_server.connection import read_body
from serving.fastapi_server.dependencies import ADMITTED, TheService
from serving.fastapi_server.problems import documented

_MAX_BODY_BYTES: Final = 65_536
_TAG: Final = "model repository"
_CHANGE: Final[dict[str, Any]] = {
    "tags": [_TAG],
    "dependencies": ADMITTED,
    "responses": documented(400, 401, 404, 408, 413, 429, 503),
    "openapi_extra": {
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/RepositoryRequest"},
                    "example": {"parameters": {"version": 2, "make_default": True}},
                }
            }
        }
    },
}

router = APIRouter(prefix="/v2/repository")


class RepositoryParameters(BaseModel):
    """The parameters of a load or unload request, in addition to the protocol's."""

    version: int | None = Field(
        default=None, ge=1, description="default: load the highest version; unload all versions"
    )
    make_default: bool = Field(default=True, description="whether a loaded version becomes the model's default version")


class RepositoryRequest(BaseModel):
    """The body of a load or unload request. It may be empty."""

    parameters: RepositoryParameters = RepositoryParameters()


@router.post("/index", tags=[_TAG], dependencies=ADMITTED, responses=documented(401, 429))
async def repository_index(service: TheService) -> list[dict[str, str]]:
    """List every bundle on disk and every loaded model."""
    on_disk = set(await asyncio.to_thread(list_bundles, service.settings.bundles))
    loaded = {(hosted.bundle.manifest.model, hosted.bundle.manifest.version) for hosted in service.hosting.all()}
    return [
        {
            "name": name,
            "version": str(version),
            "state": "READY" if (name, version) in loaded else "UNAVAILABLE",
            "reason": "",
        }
        for name, version in sorted(on_disk | loaded)
    ]


@router.post("/models/{model}/load", **_CHANGE)
async def load_model(request: Request, service: TheService, model: str) -> dict[str, str]:
    """Load a version next to the loaded ones, in all worker processes or in none. It becomes the default version after
    every process has checked it against its golden answers.
    """
    parameters = await _parameters(request)
    await service.agreement.load(model, parameters.version, make_default=parameters.make_default)
    return {}


@router.post("/models/{model}/unload", **_CHANGE)
async def unload_model(request: Request, service: TheService, model: str) -> dict[str, str]:
    """Unload a version, or all versions, of a model. Requests that were accepted before are answered."""
    parameters = await _parameters(request)
    await service.agreement.unload(model, parameters.version)
    return {}


async def _parameters(request: Request) -> RepositoryParameters:
    """Read the body. FastAPI cannot do that: tritonclient sends its JSON without a Content-Type."""
    body = await read_body(request.receive, _MAX_BODY_BYTES)
    try:
        return RepositoryRequest.model_validate_json(body or b"{}").parameters
    except ValidationError as error:
        raise RequestError(f"the body is malformed: {error.errors()[0]['msg']}") from error
