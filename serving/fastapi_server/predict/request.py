"""One request to /predict, from its headers to the reply: what its ways through the service have in common.

Limits, keys, deadline, metrics, typed errors and the request's id are all here; how bytes come and go is not.
"""

import asyncio
import itertools
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from pydantic_core import to_json

from bundle.errors import DeadlineExceededError, RequestError, RequestTimeoutError, TridentError
from bundle.manifest import Manifest
from bundle.postprocess import DEFAULT_TOP_K, answer, parse_top_k, top_k_classes
from serving.fastapi_server.metrics import NO_MODEL
from serving.fastapi_server.models.batcher import Job
from serving.fastapi_server.models.hosting import HostedModel
from serving.fastapi_server.problems import PROBLEM_JSON, problem_of
from serving.fastapi_server.service import Service

TIMEOUT_HEADER: Final = b"x-request-timeout-ms"
CLIENT_GONE: Final = 499  # nginx's code, for the metrics: nobody reads it
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_request_numbers: Final = itertools.count(int.from_bytes(os.urandom(5)) << 24)


@dataclass(frozen=True, slots=True)
class PredictResponse:
    """What is to be sent."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True, slots=True)
class PredictParams:
    """What a request asks for, beside its images."""

    model: str | None = None
    version: int | None = None
    top_k: int = DEFAULT_TOP_K


class PredictRequest:
    """Made when the headers are there; ends with exactly one of `succeed`, `fail`, `abandon` and `withdraw`.

    Header names are lower case.
    """

    __slots__ = ("_headers", "_hosted", "_model", "_params", "_service", "_started")

    def __init__(self, service: Service, headers: Mapping[bytes, bytes]) -> None:
        self._service = service
        self._headers = headers
        self._started = time.perf_counter()
        self._model = NO_MODEL
        self._params = PredictParams()
        self._hosted: HostedModel | None = None
        service.access.in_flight += 1

    def admit(self, query_string: bytes) -> None:
        """Find out what is asked for, and whether it may be.

        Raises:
            UnauthorizedError, OverloadedError, RequestError, UnknownModelError, UnavailableError.
        """
        self._service.access.admit(self._headers)
        self._params = _params(query_string, self._headers)
        self._model = self._service.hosting.find(self._params.model, self._params.version).bundle.manifest.model

    def submit(self, images: Sequence[bytes]) -> "list[asyncio.Future[Job]]":
        """Queue the images.

        Raises:
            OverloadedError, UnavailableError, UnknownModelError, DeadlineExceededError, RequestError; nothing is queued.
        """
        # Looked up anew: the model may have been replaced while the body came.
        self._hosted = self._service.hosting.find(self._params.model, self._params.version)
        timeout_s = time_left_s(self._headers, self._service.settings.request_timeout_s, self._started)
        return self._hosted.batcher.submit_all(images, timeout_s)

    def succeed(self, jobs: Sequence[Job | TridentError]) -> PredictResponse:
        """The answer; of several images some may have failed."""
        assert self._hosted is not None
        body = to_json(_content(jobs, self._hosted.bundle.manifest, self._params.top_k))
        done = [job for job in jobs if isinstance(job, Job)]
        timing = _server_timing(done, time.perf_counter() - self._started)
        return self._end(200, b"application/json", body, (b"server-timing", timing))

    def fail(self, error: Exception) -> PredictResponse:
        """The problem."""
        self._service.metrics.refused(error)
        found, headers = problem_of(error)
        more = [(key.encode(), value.encode()) for key, value in headers.items()]
        return self._end(found.status, PROBLEM_JSON.encode(), found.model_dump_json().encode(), *more)

    def abandon(self, *, too_slow: bool = False) -> None:
        """The client is gone, or was too slow and has been told so: there is nobody to answer."""
        self._end(RequestTimeoutError.status if too_slow else CLIENT_GONE, b"", b"")

    def withdraw(self) -> None:
        """As if it had not been: another exchange takes the request up."""
        self._service.access.in_flight -= 1

    def _end(self, status: int, content_type: bytes, body: bytes, *more: tuple[bytes, bytes]) -> PredictResponse:
        self._service.access.in_flight -= 1
        self._service.metrics.answered(self._model, status, time.perf_counter() - self._started)
        headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id(self._headers)),
            *more,
        ]
        return PredictResponse(status, headers, body)


def time_left_s(headers: Mapping[bytes, bytes], longest_s: float, started: float) -> float:
    """Until the answer is due: `longest_s` after the perf counter's `started`, or earlier if the request says so.

    Raises:
        RequestError: the header is no number of milliseconds.
        DeadlineExceededError: none is left.
    """
    given = headers.get(TIMEOUT_HEADER)
    if given is not None:
        if not given.isdigit() or len(given) > 9 or int(given) < 1:
            raise RequestError(f"{TIMEOUT_HEADER.decode()} must be a number of milliseconds, not {given[:20]!r}")
        longest_s = min(int(given) / 1000, longest_s)
    left_s = longest_s - (time.perf_counter() - started)
    if left_s <= 0:
        raise DeadlineExceededError("the deadline passed while the request was read")
    return left_s


def request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """The id that the client gave, if it can be repeated safely; else a new one."""
    given = headers.get(b"x-request-id", b"")
    return given if given and _REQUEST_ID.fullmatch(given) else b"%016x" % next(_request_numbers)


def _params(query_string: bytes, headers: Mapping[bytes, bytes]) -> PredictParams:
    top_k = headers.get(b"x-top-k")
    if not query_string:
        return PredictParams(top_k=parse_top_k(top_k)) if top_k is not None else PredictParams()
    query = dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
    version = query.get("version")
    if version is not None and not (version.isdecimal() and len(version) <= 9 and int(version) > 0):
        raise RequestError(f"version must be a positive integer of at most 9 digits, not {version[:20]!r}")
    return PredictParams(
        model=query.get("model"),
        version=int(version) if version is not None else None,
        top_k=parse_top_k(query.get("top_k", top_k)),
    )


def _content(jobs: Sequence[Job | TridentError], manifest: Manifest, top_k: int) -> dict[str, Any]:
    """The answer to one image, or `results` with one entry per image (schemas.Prediction, schemas.Predictions)."""
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


def _server_timing(done: Sequence[Job], total_s: float) -> bytes:
    """https://www.w3.org/TR/server-timing/, in milliseconds. Of several images: the slowest in each stage."""
    first = done[0]
    decode_s, queue_s, inference_s = first.decode_s, first.queue_s, first.inference_s
    for job in done[1:]:
        decode_s, queue_s = max(decode_s, job.decode_s), max(queue_s, job.queue_s)
        inference_s = max(inference_s, job.inference_s)
    stages = (decode_s * 1000, queue_s * 1000, inference_s * 1000, total_s * 1000)
    return b"decode;dur=%.3f, queue;dur=%.3f, inference;dur=%.3f, total;dur=%.3f" % stages
