"""POST /predict: picture bytes in, top-k answer out; as a bare ASGI application.

This is the hot path. It reads the request's headers once, by hand, and writes its response as bytes: FastAPI's share
of a request (middlewares, routing, dependency solving, response classes) costs more than decoding a small picture;
`make bench-overhead` prints how much. What a request must not do without is all here: limits, deadline, metrics, typed
errors, id.
"""

import asyncio
import itertools
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from serving.errors import DeadlineExceededError, RequestError, TridentError
from serving.fastapi_server.batcher import Job
from serving.fastapi_server.bodies import ClientGoneError, is_picture, pictures_in, read_body
from serving.fastapi_server.hosting import HostedModel
from serving.fastapi_server.metrics import NO_MODEL
from serving.fastapi_server.problems import PROBLEM_JSON, problem_of
from serving.fastapi_server.protocol import CONNECTION, Connection
from serving.fastapi_server.service import Service
from serving.manifest import Manifest
from serving.postprocess import DEFAULT_TOP_K, answer, parse_top_k, top_k_classes

log = logging.getLogger(__name__)

TIMEOUT_HEADER: Final = b"x-request-timeout-ms"
_CLIENT_GONE: Final = 499  # nginx's code, for the metrics: nobody reads it
_JSON: Final = b"application/json"
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_request_numbers: Final = itertools.count(int.from_bytes(os.urandom(5)) << 24)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, beside its pictures."""

    model: str | None = None
    version: int | None = None
    top_k: int = DEFAULT_TOP_K


class PredictEndpoint:
    """The ASGI application behind `POST /predict`."""

    def __init__(self, service: Service) -> None:
        self._settings = service.settings
        self._hosting = service.hosting
        self._metrics = service.metrics
        self._access = service.access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        extra: list[tuple[bytes, bytes]] = [(b"x-request-id", request_id(headers))]
        name, status, content_type, body = NO_MODEL, 500, PROBLEM_JSON.encode(), b""
        self._metrics.in_flight.inc()
        self._access.under_way += 1
        try:
            self._access.admit(headers)
            asked = _asked(scope["query_string"], headers)
            name = self._hosting.find(asked.model, asked.version).bundle.manifest.model
            data = await read_body(receive, headers.get(b"content-length", b""), self._settings.max_body_bytes)
            content_type_in = headers.get(b"content-type", b"")
            pictures = (
                [data] if is_picture(content_type_in) else await pictures_in(data, content_type_in.decode("latin-1"))
            )
            hosted = self._hosting.find(asked.model, asked.version)
            deadline = started + self._timeout_s(headers)
            jobs = await _classify(hosted, pictures, deadline, scope.get(CONNECTION))
            body = to_json(_content(jobs, hosted.bundle.manifest, asked.top_k))
            status, content_type = 200, _JSON
            extra.append((b"server-timing", _server_timing(jobs, started)))
        except ClientGoneError:
            status = _CLIENT_GONE
        except Exception as error:
            found, headers_out = problem_of(error)
            status, body = found.status, found.model_dump_json().encode()
            extra += [(key.encode(), value.encode()) for key, value in headers_out.items()]
            if status < 500 and isinstance(error, TridentError):
                self._metrics.rejected(error.kind).inc()
        finally:
            self._access.under_way -= 1
            self._metrics.in_flight.dec()
            self._metrics.answered(name, str(status)).inc()
            if status == 200:
                self._metrics.of_model(name).request_duration.observe(time.perf_counter() - started)
        if status != _CLIENT_GONE:
            length = (b"content-length", b"%d" % len(body))
            await send(
                {
                    "type": "http.response.start",
                    "status": status,
                    "headers": [(b"content-type", content_type), length, *extra],
                }
            )
            await send({"type": "http.response.body", "body": body})

    def _timeout_s(self, headers: Mapping[bytes, bytes]) -> float:
        """The settings' `request_timeout_s`, or less if the request says so."""
        given = headers.get(TIMEOUT_HEADER)
        if given is None:
            return self._settings.request_timeout_s
        if not given.isdigit() or int(given) < 1:
            raise RequestError(f"{TIMEOUT_HEADER.decode()} must be a number of milliseconds, not {given[:20]!r}")
        return min(int(given) / 1000, self._settings.request_timeout_s)


def request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """The id that the client gave, if it can be repeated safely; else a new one."""
    given = headers.get(b"x-request-id", b"")
    return given if _REQUEST_ID.fullmatch(given) else b"%016x" % next(_request_numbers)


def _asked(query_string: bytes, headers: Mapping[bytes, bytes]) -> Asked:
    top_k = headers.get(b"x-top-k")
    if not query_string:
        return Asked(top_k=parse_top_k(top_k)) if top_k is not None else Asked()
    query = dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
    version = query.get("version")
    if version is not None and not (version.isdecimal() and int(version) > 0):
        raise RequestError(f"version must be a positive integer, not {version[:20]!r}")
    return Asked(
        model=query.get("model"),
        version=int(version) if version is not None else None,
        top_k=parse_top_k(query.get("top_k", top_k)),
    )


async def _classify(
    hosted: HostedModel, pictures: Sequence[bytes], deadline: float, connection: Connection | None
) -> list[Job | TridentError]:
    """Each picture's job, or its own error; if none succeeded, the first error is raised.

    Raises:
        ImageError, OverloadedError, UnavailableError, DeadlineExceededError.
        ClientGoneError: the client closed the connection while it waited.
    """
    timeout_s = deadline - time.perf_counter()
    if timeout_s <= 0:
        raise DeadlineExceededError("the deadline passed while the request was read")
    futures: list[asyncio.Future[Job]] = []
    try:
        for picture in pictures:
            futures.append(hosted.batcher.submit(picture, timeout_s))
            if connection is not None:
                connection.cancel_when_lost(futures[-1])
        if len(futures) == 1:
            return [await futures[0]]
        done = await asyncio.gather(*futures, return_exceptions=True)
    except asyncio.CancelledError:
        if connection is not None and connection.lost:
            raise ClientGoneError from None
        raise
    finally:
        for future in futures:
            future.cancel()
    if any(isinstance(one, asyncio.CancelledError) for one in done):
        raise ClientGoneError
    for one in done:
        if isinstance(one, BaseException) and not isinstance(one, TridentError):
            raise one
    results = [one for one in done if isinstance(one, Job | TridentError)]
    if all(isinstance(one, TridentError) for one in results):
        assert isinstance(results[0], TridentError)
        raise results[0]
    return results


def _content(jobs: Sequence[Job | TridentError], manifest: Manifest, top_k: int) -> dict[str, Any]:
    """The answer to one picture, or `results` with one entry per picture (schemas.Prediction, schemas.Predictions)."""
    if len(jobs) == 1:
        (job,) = jobs
        assert isinstance(job, Job)
        return answer(_row(job), manifest.model, manifest.version, manifest.labels, top_k)
    results: list[dict[str, Any]] = [
        {"predictions": top_k_classes(_row(job), manifest.labels, top_k)}
        if isinstance(job, Job)
        else {"error": problem_of(job)[0].model_dump()}
        for job in jobs
    ]
    return {"model": manifest.model, "version": manifest.version, "results": results}


def _row(job: Job) -> Any:
    assert job.probabilities is not None
    return job.probabilities[0]


def _server_timing(jobs: Sequence[Job | TridentError], started: float) -> bytes:
    """https://www.w3.org/TR/server-timing/, in milliseconds. Of several pictures: the slowest in each stage."""
    done = [job for job in jobs if isinstance(job, Job)]
    return b"decode;dur=%.3f, queue;dur=%.3f, inference;dur=%.3f, total;dur=%.3f" % (
        max(job.decode_s for job in done) * 1000,
        max(job.queue_s for job in done) * 1000,
        max(job.inference_s for job in done) * 1000,
        (time.perf_counter() - started) * 1000,
    )
