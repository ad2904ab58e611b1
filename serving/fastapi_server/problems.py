"""Errors as `application/problem+json` (RFC 9457). Clients see the reason of a 4xx, never internals of the server."""

import logging
import math
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from bundle.errors import RequestError, TridentError, UnauthorizedError
from bundle.schemas import Problem, problem

PROBLEM_JSON: Final = "application/problem+json"

# The descriptions in OpenAPI.
PROBLEMS: Final = {
    400: "malformed request, or empty image",
    401: "API key missing or wrong (if the server has API keys)",
    404: "unknown model or version",
    408: "the request did not arrive in time",
    413: "too many bytes or pixels",
    415: "not a supported image type",
    422: "the image cannot be decoded",
    429: "the server is overloaded; see Retry-After",
    503: "not ready, or stopping; see Retry-After",
    504: "no answer before the deadline",
}

log = logging.getLogger(__name__)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these status codes."""
    return {
        status: {"model": Problem, "description": PROBLEMS[status], "content": {PROBLEM_JSON: {}}}
        for status in statuses
    }


def problem_of(error: Exception) -> tuple[Problem, dict[str, str]]:
    """The problem, and the headers that belong to it. An internal error is logged, and its message is not disclosed."""
    if not isinstance(error, TridentError) or error.status == TridentError.status:
        log.error("internal error", exc_info=error)
        detail = "an internal error occurred; see the server's log"
        return problem(TridentError.status, TridentError.kind, TridentError.title, detail), {}
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    return problem(error.status, error.kind, error.title, error.message), headers


def problem_of_status(status: int, detail: str) -> Problem:
    """A problem that has no error class: its kind and title are the status code's phrase."""
    title = HTTPStatus(status).phrase
    return problem(status, title.lower().replace(" ", "-"), title, detail)


def content_of(found: Problem, *, inference_protocol: bool) -> dict[str, Any]:
    """The JSON of a problem. The Open Inference Protocol has a field of its own for the message."""
    content = found.model_dump()
    return content | {"error": found.detail} if inference_protocol else content


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of `app` with a problem: our errors, validation errors, routing errors, and unexpected ones."""

    async def ours(request: Request, error: Exception) -> Response:
        if request.url.path.endswith("/infer"):
            request.app.state.service.metrics.refused(error)
        return _response(request, *problem_of(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        details = "; ".join(f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors())
        return _response(request, *problem_of(RequestError(details)))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _response(request, problem_of_status(error.status_code, str(error.detail)), dict(error.headers or {}))

    app.add_exception_handler(TridentError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, ours)


def _response(request: Request, found: Problem, headers: dict[str, str]) -> Response:
    content = content_of(found, inference_protocol=request.url.path.startswith("/v2"))
    return Response(to_json(content), found.status, headers, PROBLEM_JSON)
