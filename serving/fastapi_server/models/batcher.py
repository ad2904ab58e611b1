"""Dynamic batching: jobs in one at a time, through the model in batches, each result back to its own future.

    event loop           decoder threads            the model's thread
    submit(job) --> waiting --> decode --> decoded --> batch, infer --> futures, back on the loop

There is no delay when idle: a lone job is taken by the model's thread at once, which decodes it itself unless it is
large. Jobs that come while the model is busy are decoded meanwhile (where there are cores to spare) and form the next
batch.

Members of a batch are independent. One that cannot be decoded, whose client has gone, or whose deadline has passed, is
left out; the others are not touched.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from bundle.errors import DeadlineExceededError, OverloadedError, RequestError, TridentError, UnavailableError
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels

log = logging.getLogger(__name__)

_SMOOTHING: Final = 0.1
# Where there are decoders, larger images are theirs: while the model's thread decodes one, nobody is answered.
_SMALL_BYTES: Final = 32_768


class Job:
    """One encoded image, or a tensor of pixels (uint8 `[N, 3, H, W]`), on its way through the model.

    `future` gives the job itself, with `probabilities` (float32 `[rows, classes]`). Times are the perf counter's,
    seconds.
    """

    __slots__ = (
        "batch_size",
        "batched",
        "decoded",
        "error",
        "future",
        "inferred",
        "payload",
        "pixels",
        "probabilities",
        "rows",
        "started",
        "submitted",
        "timer",
    )

    def __init__(self, payload: bytes | Pixels, future: "asyncio.Future[Job]") -> None:
        self.payload = payload
        self.future = future
        self.rows = 1 if isinstance(payload, bytes) else len(payload)
        self.pixels: Pixels | None = None if isinstance(payload, bytes) else payload
        self.probabilities: Probabilities | None = None
        self.error: Exception | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.batch_size = 0
        self.submitted = self.started = self.decoded = self.batched = self.inferred = time.perf_counter()

    @property
    def decode_s(self) -> float:
        """Decoding and resizing."""
        return self.decoded - self.started

    @property
    def queue_s(self) -> float:
        """Waiting: for a thread, and for the batch."""
        return (self.started - self.submitted) + (self.batched - self.decoded)

    @property
    def inference_s(self) -> float:
        """The model, for the whole batch."""
        return self.inferred - self.batched


class Batcher:
    """One model's queue and threads. Its methods belong to the event loop on which it was made."""

    def __init__(
        self,
        decode: Callable[[bytes], Pixels],
        infer: Callable[[Pixels], Probabilities],
        *,
        max_batch_size: int,
        queue_delay_s: float = 0.0,
        queue_size: int = 256,
        decoders: int = 0,
        name: str = "model",
        on_batch: Callable[[Sequence[Job]], None] = lambda _: None,
    ) -> None:
        self.depth = 0  # images that were submitted and not yet delivered
        self.turn = 0  # counts up when the model's thread takes a batch, and when it is done with it: odd while at work
        self._decode = decode
        self._infer = infer
        self._max_batch_size = max_batch_size
        self._queue_delay_s = queue_delay_s
        self._queue_size = queue_size
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._submitted: list[Job] = []  # in this turn of the event loop
        self._empty = asyncio.Event()  # set when the last job is delivered while draining
        self._seconds_per_image = 0.0

        lock = threading.Lock()  # guards the six below
        self._for_model = threading.Condition(lock)
        self._for_decoders = threading.Condition(lock)
        self._waiting: deque[Job] = deque()
        self._decoded: deque[Job] = deque()
        self._decoding = 0
        self._model_waits = False
        self._closed = False

        self._has_decoders = decoders > 0
        runs = [("model", self._run_model), *((f"decode-{i}", self._run_decoder) for i in range(decoders))]
        self._threads = [threading.Thread(target=run, name=f"{name}-{part}", daemon=True) for part, run in runs]
        for thread in self._threads:
            thread.start()

    # --- on the event loop

    def submit(self, payload: bytes | Pixels, timeout_s: float) -> "asyncio.Future[Job]":
        """Queue an image or a tensor. Cancelling the future takes it out again.

        Raises (here):
            RequestError: a tensor with more images than a batch may have.
            OverloadedError: the queue is full.
            UnavailableError: the model is being unloaded.
        Raises (from the future):
            ImageError: the image is at fault.
            DeadlineExceededError: no result within `timeout_s`.
        """
        future: asyncio.Future[Job] = self._loop.create_future()
        job = Job(payload, future)
        if self._draining:
            raise UnavailableError("the model is being unloaded", retry_after_s=1)
        if job.rows > self._max_batch_size:
            raise RequestError(f"{job.rows} images in one tensor; at most {self._max_batch_size} are accepted")
        if self.depth + job.rows > self._queue_size:
            wait_s = max(1.0, self.depth * self._seconds_per_image)
            raise OverloadedError(f"{self.depth} images are waiting already", retry_after_s=math.ceil(wait_s))
        self.depth += job.rows
        job.timer = self._loop.call_later(timeout_s, _expire, job)
        future.add_done_callback(lambda _: self._release(job))
        if not self._submitted:
            self._loop.call_soon(self._hand_over)
        self._submitted.append(job)
        return future

    def submit_all(self, payloads: Sequence[bytes], timeout_s: float) -> "list[asyncio.Future[Job]]":
        """Queue all of them, or none.

        Raises:
            RequestError: they are more than the queue ever holds.
            OverloadedError, UnavailableError: as `submit`.
        """
        if len(payloads) > self._queue_size:
            raise RequestError(f"{len(payloads)} images in one request; at most {self._queue_size} are accepted")
        futures: list[asyncio.Future[Job]] = []
        try:
            for payload in payloads:
                futures.append(self.submit(payload, timeout_s))  # noqa: PERF401 - kept if the next is refused
        except TridentError:
            for future in futures:
                future.cancel()
            raise
        return futures

    def _hand_over(self) -> None:
        """Give the threads what was submitted in this turn of the event loop.

        Done job by job, the model would run off with the first of several requests that were read in one turn, and
        batches would be of 1 and of the rest in turns.
        """
        jobs, self._submitted = self._submitted, []
        with self._for_model:
            for job in jobs:
                (self._waiting if job.pixels is None else self._decoded).append(job)
            if self._model_waits:
                self._model_waits = False
                self._for_model.notify()
            self._for_decoders.notify(len(self._waiting))

    async def close(self) -> None:
        """Take nothing new, finish what was taken, and end the threads."""
        self._draining = True
        if self.depth:
            await self._empty.wait()
        with self._for_model:
            self._closed = True
            self._for_model.notify_all()
            self._for_decoders.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _deliver(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.future.done():  # cancelled, or expired
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job)
        self._on_batch(jobs)

    def _release(self, job: Job) -> None:
        """The job has its result, or nobody wants one any more: its place is free."""
        self.depth -= job.rows
        job.payload = b""  # a thread may come to the job only much later
        if job.timer is not None:
            job.timer.cancel()
        if self._draining and not self.depth:
            self._empty.set()

    # --- in the model's thread

    def _run_model(self) -> None:
        while (jobs := self._next_jobs()) is not None:
            self.turn += 1
            try:
                batch = [job for job in jobs if self._is_decoded(job)]
                if batch:
                    self._infer_batch(batch)
            except BaseException as error:  # a lost thread would be a hung server
                log.exception("the model's thread failed")
                for job in jobs:
                    job.error = job.error or RuntimeError(f"the model's thread failed: {error}")
            self.turn += 1
            if jobs:
                self._send(jobs)

    def _next_jobs(self) -> list[Job] | None:
        """Wait for work, and take a batch of it. None: there will be no more."""
        with self._for_model:
            while True:
                if self._queue_delay_s and (self._waiting or self._decoded):
                    self._wait_for_company()
                jobs = _take(self._decoded, self._max_batch_size)
                room = self._max_batch_size - sum(job.rows for job in jobs)
                if not self._has_decoders:
                    jobs += _take(self._waiting, room)
                elif self._queue_delay_s or not jobs:
                    jobs += _take_small(self._waiting, room if self._queue_delay_s else 1)
                self._for_decoders.notify(len(self._waiting))
                if jobs:
                    return jobs
                if self._closed and not self._waiting and not self._decoding:
                    return None
                self._wait_for_submission(None)

    def _wait_for_company(self) -> None:
        """Up to `queue_delay_s` after the first job's arrival, for a full batch."""
        first = min(queue[0].submitted for queue in (self._waiting, self._decoded) if queue)
        while not self._closed:
            here = sum(job.rows for queue in (self._waiting, self._decoded) for job in queue)
            left_s = first + self._queue_delay_s - time.perf_counter()
            if here >= self._max_batch_size or left_s <= 0:
                return
            self._wait_for_submission(left_s)

    def _wait_for_submission(self, timeout_s: float | None) -> None:
        self._model_waits = True
        self._for_model.wait(timeout_s)
        self._model_waits = False

    def _infer_batch(self, batch: Sequence[Job]) -> None:
        """Run the model. If it fails, each job is tried alone, so that one cannot spoil the others."""
        started = time.perf_counter()
        for job in batch:
            job.batched = started
        try:
            probabilities = self._infer(_stacked(batch))
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            log.warning("a batch of %d failed (%s); trying its members alone", len(batch), error)
            for job in batch:
                self._infer_batch([job])
            return
        finished = time.perf_counter()
        start = 0
        for job in batch:
            job.inferred = finished
            job.batch_size = len(probabilities)
            job.probabilities = probabilities[start : start + job.rows]
            start += job.rows
        self._seconds_per_image += _SMOOTHING * ((finished - started) / start - self._seconds_per_image)

    # --- in the decoder threads

    def _run_decoder(self) -> None:
        while True:
            with self._for_decoders:
                while not self._waiting:
                    if self._closed:
                        return
                    self._for_decoders.wait()
                job = self._waiting.popleft()
                self._decoding += 1
            is_decoded = self._is_decoded(job)
            with self._for_model:
                self._decoding -= 1
                if is_decoded:
                    self._decoded.append(job)
                if self._model_waits:
                    self._model_waits = False
                    self._for_model.notify()
            if not is_decoded:
                self._send([job])

    # --- in any thread

    def _is_decoded(self, job: Job) -> bool:
        """Decode if that is still to be done. False if there are no pixels, or nobody wants them any more."""
        if job.future.done():
            return False
        if job.pixels is None:
            assert isinstance(job.payload, bytes)
            job.started = time.perf_counter()
            try:
                job.pixels = self._decode(job.payload)
            except Exception as error:
                job.error = error
            job.decoded = job.batched = job.inferred = time.perf_counter()
        return job.error is None

    def _send(self, jobs: Sequence[Job]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for an answer
            self._loop.call_soon_threadsafe(self._deliver, jobs)


def _expire(job: Job) -> None:
    if not job.future.done():
        waited_s = time.perf_counter() - job.submitted
        job.future.set_exception(DeadlineExceededError(f"no answer within {waited_s:.3g} s"))


def _take(queue: deque[Job], max_rows: int) -> list[Job]:
    """The first jobs that somebody waits for, with `max_rows` images at most."""
    jobs: list[Job] = []
    rows = 0
    while queue and rows + queue[0].rows <= max_rows:
        job = queue.popleft()
        if not job.future.done():
            rows += job.rows
            jobs.append(job)
    return jobs


def _take_small(queue: deque[Job], most: int) -> list[Job]:
    """The first jobs with a small image."""
    jobs = [job for job in queue if len(job.payload) <= _SMALL_BYTES][:most]
    for job in jobs:
        queue.remove(job)
    return jobs


def _stacked(batch: Sequence[Job]) -> Pixels:
    """uint8 `[N, 3, H, W]`, C-contiguous."""
    arrays = [job.pixels for job in batch if job.pixels is not None]
    if len(arrays) == 1:
        return arrays[0] if arrays[0].ndim == 4 else arrays[0][np.newaxis]
    return np.concatenate([array if array.ndim == 4 else array[np.newaxis] for array in arrays])
