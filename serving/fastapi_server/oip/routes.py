"""The routes of the Open Inference Protocol v2 over REST, with Triton's extensions for binary tensors, model
configuration and model repository.

https://github.com/open-inference/open-inference-protocol
"""

from typing import Any, Final

from fastapi import APIRouter
from pydantic.json_schema import models_json_schema

from serving.fastapi_server.oip import infer, metadata, repository
from serving.fastapi_server.oip.repository import RepositoryRequest
from serving.fastapi_server.oip.tensors import InferRequest

router = APIRouter()
router.include_router(metadata.router)
router.include_router(infer.router)
router.include_router(repository.router)

# The schemas of the bodies that the routes read themselves, for the OpenAPI description.
BODY_SCHEMAS: Final[dict[str, Any]] = models_json_schema(
    [(InferRequest, "validation"), (RepositoryRequest, "validation")], ref_template="#/components/schemas/{model}"
)[1]["$defs"]
