"""One request to `/predict`: its parameters and its answer. The fast path and the ordinary path share this class."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from bundle.errors import RequestError, TridentError
from bundle.postprocess import DEFAULT_TOP_K, AnswerWriter, parse_top_k
from serving.fastapi_server.model_request import HttpResponse, ModelRequest, probabilities_of
from serving.fastapi_server.models.hosting import HostedModel
from serving.fastapi_server.models.job import Job
from serving.fastapi_server.problems import problem_of
from serving.fastapi_server.service import Service


class PredictParams(NamedTuple):
    """The parameters of a request."""

    model: str | None = None
    version: int | None = None
    top_k: int = DEFAULT_TOP_K


_DEFAULT_PARAMS: Final = PredictParams()


class PredictRequest(ModelRequest):
    """A request to `/predict`."""

    __slots__ = ("_params",)

    def __init__(self, service: Service, headers: Mapping[bytes, bytes]) -> None:
        super().__init__(service, headers)
        self._params = _DEFAULT_PARAMS

    def _check(self, query_string: bytes) -> None:
        self._params = _params(query_string, self._headers)
        self._model = self._find().bundle.manifest.model

    def submit(self, body: bytes, on_done: Callable[[], None]) -> None:
        """Queue one image."""
        self._jobs = [self._batcher(self._find()).submit(body, self._time_left_s(), lambda _: on_done())]

    def futures(self, images: Sequence[bytes]) -> "list[asyncio.Future[Job]]":
        """Queue several images.

        Raises:
            As `submit`: no image is queued.
        """
        return self._batcher(self._find()).futures(images, self._time_left_s())

    def respond(self) -> HttpResponse:
        """The response with the answer to the one image."""
        (job,) = self._jobs
        if job.error is not None:
            raise job.error
        return self.succeed([job])

    def succeed(self, jobs: Sequence[Job | TridentError]) -> HttpResponse:
        """The response with the answer. If there are several images, some of them may have failed."""
        assert self._hosted is not None
        body = _content(jobs, self._hosted.answers, self._params.top_k)
        done = [job for job in jobs if isinstance(job, Job)]
        timing = _server_timing(done, time.perf_counter() - self._started)
        return self._end(200, b"application/json", body, (b"server-timing", timing))

    def _find(self) -> HostedModel:
        return self._service.hosting.find(self._params.model, self._params.version)


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
        return answers.answer(probabilities_of(job)[0], top_k)
    results = [
        probabilities_of(job)[0] if isinstance(job, Job) else problem_of(job)[0].model_dump_json() for job in jobs
    ]
    return answers.answers(results, top_k)


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
