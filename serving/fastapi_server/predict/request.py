"""One request to `/predict`, from its headers to its response.

The fast path and the ordinary path share this class: admission, parameters, deadline, metrics, errors and the request's
id. They differ only in how bytes are read and written.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from bundle.errors import RequestError, TridentError
from bundle.postprocess import DEFAULT_TOP_K, AnswerWriter, Probabilities, parse_top_k
from serving.fastapi_server.connection import CLIENT_CLOSED_REQUEST, check_declared_length
from serving.fastapi_server.metrics import NO_MODEL
from serving.fastapi_server.models.batcher import Batcher
from serving.fastapi_server.models.hosting import HostedModel
from serving.fastapi_server.models.job import Job
from serving.fastapi_server.problems import PROBLEM_JSON, problem_of
from serving.fastapi_server.request_headers import REQUEST_ID_HEADER, request_id, time_left_s
from serving.fastapi_server.service import Service

_PROBLEM_JSON: Final = PROBLEM_JSON.encode()


class PredictResponse(NamedTuple):
    """The HTTP response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class PredictParams(NamedTuple):
    """The parameters of a request."""

    model: str | None = None
    version: int | None = None
    top_k: int = DEFAULT_TOP_K


_DEFAULT_PARAMS: Final = PredictParams()


class PredictRequest:
    """Made when the headers are complete. Ends with exactly one of `succeed`, `fail` and `abandon`.

    Header names are lower case.
    """

    __slots__ = ("_admitted", "_headers", "_hosted", "_job", "_model", "_params", "_service", "_started")

    def __init__(self, service: Service, headers: Mapping[bytes, bytes]) -> None:
        self._service = service
        self._headers = headers
        self._started = time.perf_counter()
        self._admitted = False
        self._model = NO_MODEL
        self._params = _DEFAULT_PARAMS
        self._hosted: HostedModel | None = None
        self._job: Job | None = None

    def admit(self, query_string: bytes) -> None:
        """Admit the request, and check its parameters before its body is read.

        Raises:
            UnauthorizedError, OverloadedError, RequestError, UnknownModelError, UnavailableError, BodyTooLargeError.
        """
        service, headers = self._service, self._headers
        service.admission.enter(headers)
        self._admitted = True
        self._params = _params(query_string, headers)
        self._model = service.hosting.find(self._params.model, self._params.version).bundle.manifest.model
        check_declared_length(headers.get(b"content-length"), service.settings.max_body_bytes)

    def submit(self, image: bytes, on_done: Callable[[Job], None]) -> None:
        """Queue one image. `on_done` is called later, unless the request is cancelled.

        Raises:
            OverloadedError, UnavailableError, UnknownModelError, DeadlineExceededError, RequestError: it is not queued.
        """
        self._job = self._batcher().submit(image, self._time_left_s(), on_done)

    def futures(self, images: Sequence[bytes]) -> "list[asyncio.Future[Job]]":
        """Queue the images.

        Raises:
            As `submit`: no image is queued.
        """
        return self._batcher().futures(images, self._time_left_s())

    def cancel(self) -> None:
        """Remove the image from the queue: the client has disconnected."""
        if self._job is not None and self._hosted is not None:
            self._hosted.batcher.cancel(self._job)
        self.abandon(CLIENT_CLOSED_REQUEST)

    def _batcher(self) -> Batcher:
        # Find the model again: it may have been replaced while the body was read.
        self._hosted = self._service.hosting.find(self._params.model, self._params.version)
        return self._hosted.batcher

    def _time_left_s(self) -> float:
        return time_left_s(self._headers, self._service.settings.request_timeout_s, self._started)

    def succeed(self, jobs: Sequence[Job | TridentError]) -> PredictResponse:
        """The response with the answer. If there are several images, some of them may have failed."""
        assert self._hosted is not None
        body = _content(jobs, self._hosted.answers, self._params.top_k)
        done = [job for job in jobs if isinstance(job, Job)]
        timing = _server_timing(done, time.perf_counter() - self._started)
        return self._end(200, b"application/json", body, (b"server-timing", timing))

    def fail(self, error: Exception) -> PredictResponse:
        """The response with the problem."""
        self._service.metrics.refused(error)
        found, headers = problem_of(error)
        more = [(key.encode(), value.encode()) for key, value in headers.items()]
        return self._end(found.status, _PROBLEM_JSON, found.model_dump_json().encode(), *more)

    def abandon(self, status: int) -> None:
        """The client has disconnected. `status` appears only in the metrics."""
        self._end(status, b"", b"")

    def _end(self, status: int, content_type: bytes, body: bytes, *more: tuple[bytes, bytes]) -> PredictResponse:
        if self._admitted:
            self._service.admission.leave()
        self._service.metrics.answered(self._model, status, time.perf_counter() - self._started)
        headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            (REQUEST_ID_HEADER, request_id(self._headers)),
            *more,
        ]
        return PredictResponse(status, headers, body)


def _params(query_string: bytes, headers: Mapping[bytes, bytes]) -> PredictParams:
    top_k = headers.get(b"x-top-k")
    if not query_string:
        return PredictParams(top_k=parse_top_k(top_k)) if top_k is not None else _DEFAULT_PARAMS
    query = dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
    version = query.get("version")
    if version is not None and not (version.isdecimal() and len(version) <= 9 and int(version) > 0):
        raise RequestError(f"version must be a positive integer of at most 9 digits, not {version[:20]!r}")
    return PredictParams(
        model=query.get("model"),
        version=int(version) if version is not None else None,
        top_k=parse_top_k(query.get("top_k", top_k)),
    )


def _content(jobs: Sequence[Job | TridentError], answers: AnswerWriter, top_k: int) -> bytes:
    """The answer to one image, or `results` with one entry per image (schemas.Prediction, schemas.Predictions)."""
    if len(jobs) == 1:
        (job,) = jobs
        assert isinstance(job, Job)
        return answers.answer(_probabilities(job), top_k)
    results = [_probabilities(job) if isinstance(job, Job) else problem_of(job)[0].model_dump_json() for job in jobs]
    return answers.answers(results, top_k)


def _probabilities(job: Job) -> Probabilities:
    """float32 `[classes]`, of a job with one image."""
    assert job.probabilities is not None
    row: Probabilities = job.probabilities[0]
    return row


def _server_timing(done: Sequence[Job], total_s: float) -> bytes:
    """The header Server-Timing (https://www.w3.org/TR/server-timing/), in milliseconds. With several images, the longest
    time in each stage.
    """
    job = done[0]
    decode_s, queue_s, inference_s = job.decode_s, job.queue_s, job.inference_s
    for job in done[1:]:
        decode_s, queue_s = max(decode_s, job.decode_s), max(queue_s, job.queue_s)
        inference_s = max(inference_s, job.inference_s)
    stages = (decode_s * 1000, queue_s * 1000, inference_s * 1000, total_s * 1000)
    return b"decode;dur=%.3f, queue;dur=%.3f, inference;dur=%.3f, total;dur=%.3f" % stages
