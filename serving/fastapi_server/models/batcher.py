"""Dynamic batching: jobs are submitted one at a time, run through the model in batches, and answered one by one.

In the model's thread, if a batch takes long or there are cores to spare:

    event loop           decoder threads              the model's thread
    submit(job) --> encoded --> decode --> decoded --> batch, infer --> on_done, on the event loop

On the event loop's thread, if a batch takes a few milliseconds at most (see `placement`):

    event loop
    submit(job) --> decode, batch, infer --> on_done

An idle batcher adds no delay: a single job starts at once. Jobs that arrive while the model is busy form the next batch. On
the event loop, the requests that were read together form a batch; large images are decoded in the model's thread.

The members of a batch are independent. A job that cannot be decoded, that is cancelled or whose deadline has passed is
left out; the others are not affected.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from bundle.errors import DeadlineExceededError, OverloadedError, RequestError, TridentError, UnavailableError
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels
from serving.fastapi_server.models.job import Job
from serving.fastapi_server.models.job_queue import JobQueue
from serving.fastapi_server.models.placement import Placement

log = logging.getLogger(__name__)

_SMOOTHING: Final = 0.1


class Batcher:
    """One model's queue and threads. Its public methods belong to the event loop in which it was made.

    Args:
        decode: encoded image -> uint8 `[3, H, W]`.
        infer: uint8 `[N, 3, H, W]` -> float32 `[N, classes]`.
        placement: where batches run; None: always in the model's thread.
        on_batch: called on the event loop with every batch that is done.
    """

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
        placement: Placement | None = None,
        on_batch: Callable[[Sequence[Job]], None] = lambda _: None,
    ) -> None:
        self.placement = placement or Placement(name, fixed="model thread")
        self.depth = 0  # images that were submitted and not yet answered
        self.turn = 0  # incremented when a batch starts, and when it has finished; an odd number: busy
        self._decode = decode
        self._infer = infer
        self._max_batch_size = max_batch_size
        self._queue_size = queue_size
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._on_loop = False  # whether batches run on the event loop; changed by `_follow_placement`
        self._submitted: list[Job] = []  # since the last `_start_submitted`
        self._in_threads: dict[Job, None] = {}  # given to the threads, in order, and not done
        self._expiry: asyncio.TimerHandle | None = None  # for the earliest deadline of these
        self._empty = asyncio.Event()  # set when the last job is answered while draining
        self._seconds_per_image = 0.0
        self._queue = JobQueue(max_batch_size, queue_delay_s, has_decoders=decoders > 0)
        runs = [("model", self._run_model), *((f"decode-{i}", self._run_decoder) for i in range(decoders))]
        self._threads = [threading.Thread(target=run, name=f"{name}-{part}", daemon=True) for part, run in runs]
        for thread in self._threads:
            thread.start()

    # --- on the event loop: the jobs

    def submit(self, payload: bytes | Pixels, timeout_s: float, on_done: Callable[[Job], None]) -> Job:
        """Queue an image or a tensor. `on_done` is called later, with the probabilities or one of these errors:

            ImageError: the image cannot be decoded.
            DeadlineExceededError: no result within `timeout_s`.

        Raises:
            RequestError: a tensor with more images than `max_batch_size`.
            OverloadedError: the queue is full.
            UnavailableError: the model is being unloaded.
        """
        job = Job(payload, on_done, timeout_s)
        if self._draining:
            raise UnavailableError("the model is being unloaded", retry_after_s=1)
        if job.rows > self._max_batch_size:
            raise RequestError(f"{job.rows} images in one tensor; at most {self._max_batch_size} are accepted")
        if self.depth + job.rows > self._queue_size:
            wait_s = max(1.0, self.depth * self._seconds_per_image)
            raise OverloadedError(f"the queue is full: {self.depth} images", retry_after_s=math.ceil(wait_s))
        self.depth += job.rows
        if not self._submitted:
            # Not at once: if every job started alone, the requests that are read together would make no batch.
            self._loop.call_soon(self._start_submitted)
        self._submitted.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Remove the job from the queue, unless it is done. `on_done` is not called."""
        if not job.done:
            self._release(job)

    def future(self, payload: bytes | Pixels, timeout_s: float) -> "asyncio.Future[Job]":
        """`submit` with a future, which gets the job or its error. Cancelling the future cancels the job."""
        future: asyncio.Future[Job] = self._loop.create_future()

        def resolve(job: Job) -> None:
            if job.error is not None:
                future.set_exception(job.error)
            else:
                future.set_result(job)

        job = self.submit(payload, timeout_s, resolve)
        future.add_done_callback(lambda _: self.cancel(job))
        return future

    def check_count(self, images: int) -> None:
        """Raises: RequestError: the queue can never hold so many images."""
        if images > self._queue_size:
            raise RequestError(f"{images} images in one request; at most {self._queue_size} are accepted")

    def futures(self, payloads: Sequence[bytes | Pixels], timeout_s: float) -> "list[asyncio.Future[Job]]":
        """Queue all images, or none.

        Raises:
            RequestError: there are more images than the queue can hold.
            OverloadedError, UnavailableError: as `submit`.
        """
        self.check_count(len(payloads))
        futures: list[asyncio.Future[Job]] = []
        try:
            for payload in payloads:
                futures.append(self.future(payload, timeout_s))  # noqa: PERF401 - kept if the next one is refused
        except TridentError:
            for future in futures:
                future.cancel()
            raise
        return futures

    async def close(self) -> None:
        """Accept no new jobs, finish the accepted ones, and end the threads."""
        self._draining = True
        if self.depth:
            await self._empty.wait()
        self._queue.close()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _release(self, job: Job) -> None:
        """Free the job's place in the queue: it is finished, expired or cancelled."""
        job.done = True
        job.payload = b""  # frees the memory now; a thread may drop the job much later
        self.depth -= job.rows
        self._in_threads.pop(job, None)
        if self._draining and not self.depth:
            self._empty.set()

    def _finish(self, jobs: Sequence[Job]) -> None:
        """Report jobs that have probabilities or an error."""
        for job in jobs:
            if job.done:  # cancelled, or expired
                continue
            self._release(job)
            try:
                job.on_done(job)
            except Exception:
                log.exception("an answer could not be sent")
        self._on_batch(jobs)

    # --- on the event loop: batches

    def _start_submitted(self) -> None:
        """Start the jobs that were submitted since the last call."""
        self._follow_placement()
        jobs, self._submitted = self._submitted, []
        if not self._on_loop:
            self._give_to_threads(jobs)
            return
        here: list[Job] = []
        for job in jobs:
            if job.is_cheap:
                here.append(job)
            else:
                self._give_to_threads([job])
        self._run_on_loop(here)

    def _follow_placement(self) -> None:
        """Change the thread in which batches run. The model is never used in two threads at the same time."""
        if self.placement.place == "model thread":
            self._on_loop = False
        elif not self._on_loop and self._queue.is_idle():
            self._on_loop = True

    def _run_on_loop(self, jobs: list[Job]) -> None:
        """Run one batch. If there are more jobs, they wait until the event loop has read and written."""
        batch, rows = [], 0
        for place, job in enumerate(jobs):
            if rows + job.rows > self._max_batch_size:
                if not self._submitted:
                    self._loop.call_soon(self._start_submitted)
                self._submitted[:0] = jobs[place:]
                break
            if not job.done:
                batch.append(job)
                rows += job.rows
        if batch:
            try:
                self._run_batch(batch)
            except Exception as error:
                _fail(batch, error)
            self._finish(batch)

    def _give_to_threads(self, submitted: Sequence[Job]) -> None:
        jobs = [job for job in submitted if not job.done]  # a job may be cancelled before it starts
        if not jobs:
            return
        self._in_threads.update(dict.fromkeys(jobs))
        earliest = min(job.deadline for job in jobs) - time.perf_counter() + self._loop.time()
        if self._expiry is None or earliest < self._expiry.when():
            self._expire_at(earliest)
        self._queue.put(jobs)

    def _expire_at(self, when: float | None) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self._loop.call_at(when, self._expire) if when is not None else None

    def _expire(self) -> None:
        """End the jobs in the threads whose deadline has passed. They may be stuck in the model."""
        now = time.perf_counter()
        late = [job for job in self._in_threads if job.deadline <= now]
        for job in late:
            job.error = _deadline_exceeded(job, now)
        self._finish(late)
        earliest = min((job.deadline for job in self._in_threads), default=None)
        self._expire_at(earliest - now + self._loop.time() if earliest is not None else None)

    def _take_back(self, jobs: Sequence[Job]) -> None:
        """Large images were decoded in the model's thread, while batches ran on the event loop."""
        for job in jobs:
            self._in_threads.pop(job, None)
        if not self._submitted:
            self._loop.call_soon(self._start_submitted)
        self._submitted += [job for job in jobs if not job.done]

    # --- on the event loop or in the model's thread

    def _run_batch(self, jobs: Sequence[Job]) -> None:
        """Decode and classify. Each job then has its probabilities or an error."""
        self.turn += 1
        started = time.thread_time()
        try:
            batch = [job for job in jobs if self._is_decoded(job)]
            if batch:
                self._infer_batch(batch)
                self.placement.observe(time.thread_time() - started)
        finally:
            self.turn += 1

    def _infer_batch(self, batch: Sequence[Job]) -> None:
        """Run the model. If it fails, run every job alone, so that one job cannot fail the others."""
        started = time.perf_counter()
        for job in batch:
            job.batched = started
        try:
            probabilities = self._infer(_stacked(batch))
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            log.warning("a batch of %d failed (%s); running its members alone", len(batch), error)
            for job in batch:
                self._infer_batch([job])
            return
        finished = time.perf_counter()
        start = 0
        size = len(probabilities)
        for job in batch:
            job.inferred = finished
            job.batch_size = size
            job.probabilities = probabilities[start : start + job.rows]
            start += job.rows
        self._seconds_per_image += _SMOOTHING * ((finished - started) / start - self._seconds_per_image)

    def _is_decoded(self, job: Job) -> bool:
        """Decode the image unless that is done. False if there are no pixels, or the job is done or late."""
        if job.done:
            return False
        started = time.perf_counter()
        if started > job.deadline:
            job.error = _deadline_exceeded(job, started)
        elif job.pixels is None:
            assert isinstance(job.payload, bytes)
            job.started = started
            try:
                job.pixels = self._decode(job.payload)
            except Exception as error:
                job.error = error
            job.decoded = job.batched = job.inferred = time.perf_counter()
        return job.error is None

    # --- in the threads

    def _run_model(self) -> None:
        while (jobs := self._queue.take_batch()) is not None:
            try:
                if self._on_loop:
                    self._decode_for_loop(jobs)
                else:
                    self._run_batch(jobs)
            except BaseException as error:  # without its thread, the model would never answer again
                _fail(jobs, error)
            done = [job for job in jobs if job.error is not None or job.probabilities is not None]
            if done:
                self._call_on_loop(self._finish, done)

    def _decode_for_loop(self, jobs: Sequence[Job]) -> None:
        self.turn += 1
        decoded = [job for job in jobs if self._is_decoded(job)]
        self.turn += 1
        if decoded:
            self._call_on_loop(self._take_back, decoded)

    def _run_decoder(self) -> None:
        while (job := self._queue.take_undecoded()) is not None:
            is_decoded = self._is_decoded(job)
            self._queue.put_decoded(job, decoded=is_decoded)
            if not is_decoded:
                self._call_on_loop(self._finish, [job])

    def _call_on_loop(self, function: Callable[[Sequence[Job]], None], jobs: Sequence[Job]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(function, jobs)


def _fail(jobs: Sequence[Job], error: BaseException) -> None:
    log.error("a batch failed", exc_info=error)
    for job in jobs:
        job.error = job.error or RuntimeError(f"the batch failed: {error}")


def _deadline_exceeded(job: Job, now: float) -> DeadlineExceededError:
    return DeadlineExceededError(f"no answer within {now - job.submitted:.3g} s")


def _stacked(batch: Sequence[Job]) -> Pixels:
    """uint8 `[N, 3, H, W]`, C-contiguous."""
    arrays = [job.pixels for job in batch if job.pixels is not None]
    if len(arrays) == 1:
        return arrays[0] if arrays[0].ndim == 4 else arrays[0][np.newaxis]
    if all(array.ndim == 3 for array in arrays):
        return np.array(arrays)
    return np.concatenate([array if array.ndim == 4 else array[np.newaxis] for array in arrays])
