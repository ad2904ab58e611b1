"""Dynamic batching: jobs are submitted one at a time, run through the model in batches, and answered one by one.

    event loop           decoder threads              the model's thread
    submit(job) --> encoded --> decode --> decoded --> batch, infer --> futures, on the event loop

An idle batcher adds no delay: the model's thread takes a single job at once, and decodes it itself unless it is large.
Jobs that arrive while the model is busy are decoded meanwhile (if there are cores to spare) and form the next batch.

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

log = logging.getLogger(__name__)

_SMOOTHING: Final = 0.1


class Batcher:
    """One model's queue and threads. Its public methods belong to the event loop in which it was made.

    Args:
        decode: encoded image -> uint8 `[3, H, W]`.
        infer: uint8 `[N, 3, H, W]` -> float32 `[N, classes]`.
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
        on_batch: Callable[[Sequence[Job]], None] = lambda _: None,
    ) -> None:
        self.depth = 0  # images that were submitted and not yet answered
        self.turn = (
            0  # incremented when the model's thread takes a batch, and when it has finished it; an odd number: busy
        )
        self._decode = decode
        self._infer = infer
        self._max_batch_size = max_batch_size
        self._queue_size = queue_size
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._submitted: list[Job] = []  # in this iteration of the event loop
        self._empty = asyncio.Event()  # set when the last job is answered while draining
        self._seconds_per_image = 0.0
        self._queue = JobQueue(max_batch_size, queue_delay_s, has_decoders=decoders > 0)
        runs = [("model", self._run_model), *((f"decode-{i}", self._run_decoder) for i in range(decoders))]
        self._threads = [threading.Thread(target=run, name=f"{name}-{part}", daemon=True) for part, run in runs]
        for thread in self._threads:
            thread.start()

    # --- on the event loop

    def submit(self, payload: bytes | Pixels, timeout_s: float) -> "asyncio.Future[Job]":
        """Queue an image or a tensor. Cancelling the future removes it from the queue.

        Raises (here):
            RequestError: a tensor with more images than `max_batch_size`.
            OverloadedError: the queue is full.
            UnavailableError: the model is being unloaded.
        Raises (from the future):
            ImageError: the image cannot be decoded.
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
            raise OverloadedError(f"the queue is full: {self.depth} images", retry_after_s=math.ceil(wait_s))
        self.depth += job.rows
        job.timer = self._loop.call_later(timeout_s, _expire, job)
        future.add_done_callback(lambda _: self._release(job))
        if not self._submitted:
            self._loop.call_soon(self._hand_over)
        self._submitted.append(job)
        return future

    def submit_all(self, payloads: Sequence[bytes], timeout_s: float) -> "list[asyncio.Future[Job]]":
        """Queue all images, or none.

        Raises:
            RequestError: there are more images than the queue can hold.
            OverloadedError, UnavailableError: as `submit`.
        """
        if len(payloads) > self._queue_size:
            raise RequestError(f"{len(payloads)} images in one request; at most {self._queue_size} are accepted")
        futures: list[asyncio.Future[Job]] = []
        try:
            for payload in payloads:
                futures.append(self.submit(payload, timeout_s))  # noqa: PERF401 - kept if the next one is refused
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

    def _hand_over(self) -> None:
        """Give the threads what was submitted in this iteration of the event loop.

        If every job were handed over at once, the model would start with the first of several requests that were read
        together, and batches would alternate between one job and all the others.
        """
        jobs, self._submitted = self._submitted, []
        self._queue.put(jobs)

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
        """Free the job's place in the queue: it has its result, or was cancelled."""
        self.depth -= job.rows
        job.payload = b""  # frees the memory now; a thread may drop the job much later
        if job.timer is not None:
            job.timer.cancel()
        if self._draining and not self.depth:
            self._empty.set()

    # --- in the model's thread

    def _run_model(self) -> None:
        while (jobs := self._queue.take_batch()) is not None:
            self.turn += 1
            try:
                batch = [job for job in jobs if self._is_decoded(job)]
                if batch:
                    self._infer_batch(batch)
            except BaseException as error:  # without its thread, the model would never answer again
                log.exception("the model's thread failed")
                for job in jobs:
                    job.error = job.error or RuntimeError(f"the model's thread failed: {error}")
            self.turn += 1
            if jobs:
                self._send(jobs)

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
        for job in batch:
            job.inferred = finished
            job.batch_size = len(probabilities)
            job.probabilities = probabilities[start : start + job.rows]
            start += job.rows
        self._seconds_per_image += _SMOOTHING * ((finished - started) / start - self._seconds_per_image)

    # --- in the decoder threads

    def _run_decoder(self) -> None:
        while (job := self._queue.take_undecoded()) is not None:
            is_decoded = self._is_decoded(job)
            self._queue.put_decoded(job, decoded=is_decoded)
            if not is_decoded:
                self._send([job])

    # --- in any of the threads

    def _is_decoded(self, job: Job) -> bool:
        """Decode the image unless that is done. False if there are no pixels, or the job was cancelled."""
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
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._deliver, jobs)


def _expire(job: Job) -> None:
    if not job.future.done():
        waited_s = time.perf_counter() - job.submitted
        job.future.set_exception(DeadlineExceededError(f"no answer within {waited_s:.3g} s"))


def _stacked(batch: Sequence[Job]) -> Pixels:
    """uint8 `[N, 3, H, W]`, C-contiguous."""
    arrays = [job.pixels for job in batch if job.pixels is not None]
    if len(arrays) == 1:
        return arrays[0] if arrays[0].ndim == 4 else arrays[0][np.newaxis]
    return np.concatenate([array if array.ndim == 4 else array[np.newaxis] for array in arrays])
