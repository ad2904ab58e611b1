"""One request that runs a model, from its headers to its response: what `/predict` and the Open Inference Protocol share.

Admission, deadline, metrics, errors and the request's id. How bytes are read and written is not its concern.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Final, NamedTuple

from pydantic_core import to_json

from bundle.postprocess import Probabilities
from serving.fastapi_server.connection import CLIENT_CLOSED_REQUEST, check_declared_length
from serving.fastapi_server.metrics import NO_MODEL
from serving.fastapi_server.models.batcher import Batcher
from serving.fastapi_server.models.hosting import HostedModel
from serving.fastapi_server.models.job import Job
from serving.fastapi_server.problems import PROBLEM_JSON, content_of, problem_of
from serving.fastapi_server.request_headers import REQUEST_ID_HEADER, request_id, time_left_s
from serving.fastapi_server.service import Service

_PROBLEM_JSON: Final = PROBLEM_JSON.encode()


class HttpResponse(NamedTuple):
    """A response with its whole body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class ModelRequest(ABC):
    """Made when the headers are complete. Call `admit`, then `submit`, then `respond`; or one of `fail`, `abandon` and
    `cancel`, which end it. Header names are lower case.
    """

    __slots__ = ("_admitted", "_headers", "_hosted", "_jobs", "_model", "_service", "_started")
    is_inference_protocol: ClassVar[bool] = False

    def __init__(self, service: Service, headers: Mapping[bytes, bytes]) -> None:
        self._service = service
        self._headers = headers
        self._started = time.perf_counter()
        self._admitted = False
        self._model = NO_MODEL  # in the metrics
        self._hosted: HostedModel | None = None
        self._jobs: list[Job] = []

    def admit(self, query_string: bytes) -> None:
        """Admit the request, and check it before its body is read.

        Raises:
            UnauthorizedError, OverloadedError, RequestError, UnknownModelError, UnavailableError, BodyTooLargeError,
            UnsupportedMediaTypeError.
        """
        self._service.admission.enter(self._headers)
        self._admitted = True
        self._check(query_string)
        check_declared_length(self._headers.get(b"content-length"), self._service.settings.max_body_bytes)

    @abstractmethod
    def _check(self, query_string: bytes) -> None:
        """Check the parameters, and that the model exists."""

    @abstractmethod
    def submit(self, body: bytes, on_done: Callable[[], None]) -> None:
        """Queue what the body holds. `on_done` is called when all of it is done, unless the request is cancelled.

        Raises:
            OverloadedError, UnavailableError, UnknownModelError, DeadlineExceededError, RequestError: nothing is queued.
        """

    @abstractmethod
    def respond(self) -> HttpResponse:
        """The response, after `on_done` was called.

        Raises:
            TridentError: the image cannot be decoded, or there was no answer in time.
        """

    def fail(self, error: Exception) -> HttpResponse:
        """The response with the problem."""
        self._service.metrics.refused(error)
        found, headers = problem_of(error)
        more = [(key.encode(), value.encode()) for key, value in headers.items()]
        body = to_json(content_of(found, inference_protocol=self.is_inference_protocol))
        return self._end(found.status, _PROBLEM_JSON, body, *more)

    def abandon(self, status: int) -> None:
        """The client has disconnected. `status` appears only in the metrics."""
        self._end(status, b"", b"")

    def cancel(self) -> None:
        """The client has disconnected: remove the jobs from the queue."""
        self._cancel_jobs()
        self.abandon(CLIENT_CLOSED_REQUEST)

    def _cancel_jobs(self) -> None:
        for job in self._jobs:
            assert self._hosted is not None
            self._hosted.batcher.cancel(job)

    def _batcher(self, hosted: HostedModel) -> Batcher:
        """Found again after the body was read: it may have been replaced meanwhile."""
        self._hosted = hosted
        return hosted.batcher

    def _time_left_s(self, timeout_s: float | None = None) -> float:
        limit_s = self._service.settings.request_timeout_s if timeout_s is None else timeout_s
        return time_left_s(self._headers, limit_s, self._started)

    def _end(self, status: int, content_type: bytes, body: bytes, *more: tuple[bytes, bytes]) -> HttpResponse:
        if self._admitted:
            self._service.admission.leave()
        self._service.metrics.answered(self._model, status, time.perf_counter() - self._started)
        headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            (REQUEST_ID_HEADER, request_id(self._headers)),
            *more,
        ]
        return HttpResponse(status, headers, body)


def probabilities_of(job: Job) -> Probabilities:
    """float32 `[rows, classes]`.

    Raises:
        TridentError: the job has an error instead.
    """
    if job.error is not None:
        raise job.error
    assert job.probabilities is not None
    return job.probabilities
