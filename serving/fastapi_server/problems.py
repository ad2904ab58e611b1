"""Errors -> `application/problem+json` (RFC 9457). The client sees the message of what it did wrong, never our
internals.
"""

import logging
import math
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from serving.errors import RequestError, TridentError
from serving.schemas import problem

PROBLEM_JSON: Final = "application/problem+json"

log = logging.getLogger(__name__)


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of `app` as a problem: ours, FastAPI's validation, Starlette's routing, and what nobody
    expected.
    """

    @app.exception_handler(TridentError)
    async def _ours(_: Request, error: TridentError) -> Response:
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        return problem_response(RequestError(faults))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        title = HTTPStatus(error.status_code).phrase
        body = problem(error.status_code, title.lower().replace(" ", "-"), title, error.detail)
        return Response(body.model_dump_json(), error.status_code, dict(error.headers or {}), PROBLEM_JSON)

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> Response:
        return problem_response(error)


def problem_response(error: Exception) -> Response:
    """The response to an error; one that is not ours is logged here and stays opaque outside."""
    headers: dict[str, str] = {}
    if isinstance(error, TridentError) and error.status != TridentError.status:
        body = problem(error.status, error.kind, error.title, error.message)
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    else:
        log.error("internal error", exc_info=error)
        body = problem(
            TridentError.status, TridentError.kind, TridentError.title, "the server failed; its log says why"
        )
    return Response(body.model_dump_json(), body.status, headers, PROBLEM_JSON)
