"""Errors -> `application/problem+json` (RFC 9457). A client reads what it did wrong, never our internals."""

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

# What OpenAPI says of each.
PROBLEMS: Final = {
    400: "malformed request, or empty image",
    401: "API key missing or wrong (where keys are set)",
    404: "unknown model or version",
    408: "the request was too slow in coming",
    413: "too many bytes or pixels",
    415: "not an image type",
    422: "the image cannot be decoded",
    429: "the queue is full; see Retry-After",
    503: "not ready, or stopping; see Retry-After",
    504: "no answer in time",
}

log = logging.getLogger(__name__)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these problems."""
    return {
        status: {"model": Problem, "description": PROBLEMS[status], "content": {PROBLEM_JSON: {}}}
        for status in statuses
    }


def problem_of(error: Exception) -> tuple[Problem, dict[str, str]]:
    """The problem, and headers that go with it. An error that is not ours is logged here and stays opaque outside."""
    if not isinstance(error, TridentError) or error.status == TridentError.status:
        log.error("internal error", exc_info=error)
        return problem(
            TridentError.status, TridentError.kind, TridentError.title, "the server failed; its log says why"
        ), {}
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    return problem(error.status, error.kind, error.title, error.message), headers


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of `app` as a problem: ours, FastAPI's validation, Starlette's routing, and what nobody
    expected.
    """

    async def ours(request: Request, error: Exception) -> Response:
        if request.url.path.endswith("/infer"):
            request.app.state.service.metrics.refused(error)
        return _response(request, *problem_of(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        return _response(request, *problem_of(RequestError(faults)))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = HTTPStatus(error.status_code).phrase
        found = problem(error.status_code, title.lower().replace(" ", "-"), title, str(error.detail))
        return _response(request, found, dict(error.headers or {}))

    app.add_exception_handler(TridentError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, ours)


def _response(request: Request, found: Problem, headers: dict[str, str]) -> Response:
    content = found.model_dump()
    if request.url.path.startswith("/v2"):
        content["error"] = found.detail  # where clients of the Open Inference Protocol look for it
    return Response(to_json(content), found.status, headers, PROBLEM_JSON)
