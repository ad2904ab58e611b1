"""The image model: requests from Triton in, answers out, at once or later.

    Triton's batcher -> execute() -> fast model: one batch, its answers are returned to Triton
                                  -> slow model: held, and answered in batches by the model's thread

Requests that wait in Triton's queue cannot be counted or refused. A call of a slow model therefore returns at once, and
all that waits is held here: what is too much is refused immediately. With a fast model no request waits for long, and a
batch that is answered within the call costs a fifth less, because Triton takes responses that are sent later one by one.
A fast model holds requests too, for a moment, to count what waits: after a call that took long, and after `slots` images
in full batches one after another (with fewer, the bound is certainly kept).

Each instance has a queue of its own, and its share of `queue_size`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from bundle.errors import OverloadedError, TridentError
from serving.triton_server.admission import Admission
from serving.triton_server.job import Job, Outcome
from serving.triton_server.pipeline import Pipeline

log = logging.getLogger(__name__)

_LONG_CALL_S: Final = 0.02
_MAX_BACKOFF: Final = 4


class ImageModel:
    """One instance. Triton calls `execute` from one thread, with `max_batch_size` images at most.

    Args:
        queue_size: for the message to clients.
        decoders: threads that decode held images ahead.
        on_held: called by the model's thread with the number of images that are held, before and after each batch.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        admission: Admission,
        *,
        max_batch_size: int,
        queue_size: int,
        decoders: int = 0,
        on_held: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._pipeline = pipeline
        self._admission = admission
        self._max_batch_size = max_batch_size
        self._queue_size = queue_size
        self._on_held = on_held
        self._model = threading.Lock()  # one batch at a time
        self._changed = threading.Condition()  # guards the queue
        self._queue: deque[Job] = deque()
        self._held = 0  # images in the queue and in the thread's batch
        self._closed = False
        self._holding = False
        self._unseen = 0  # images in full batches since the queue was last counted
        self._backoff = 1
        self._decoders = ThreadPoolExecutor(decoders, "decode") if decoders else None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def held(self) -> int:
        """Images that are answered later."""
        return self._held

    def execute(self, jobs: Sequence[Job]) -> list[Outcome | None]:
        """The outcomes; None where it comes later, by the job's `reply`."""
        if not jobs:
            return []
        if self._should_hold(jobs):
            with self._changed:
                outcomes = [self._admit(job) for job in jobs]
                self._changed.notify()
            return outcomes
        if self._queue:
            self._answer_held()  # they came earlier
        started = time.perf_counter()
        with self._model:
            at_once = self._pipeline.run(jobs)
        seconds = time.perf_counter() - started
        self._admission.observe(_images(jobs), seconds)
        if seconds > _LONG_CALL_S:
            self._unseen = self._admission.slots * self._backoff
        return list(at_once)

    def close(self) -> None:
        """Answer what is held, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        if self._decoders is not None:
            self._decoders.shutdown()

    def _should_hold(self, jobs: Sequence[Job]) -> bool:
        """Whether the requests of this call are held, because the model is slow, or to count what waits."""
        slots, images = self._admission.slots, _images(jobs)
        # Else Triton's queue is empty: another request would have fitted in.
        is_full = images + max(len(job.images) for job in jobs) > self._max_batch_size
        if not self._admission.is_fast:
            self._holding = True
        elif not self._holding:
            self._unseen = self._unseen + images if is_full else 0
            if self._unseen >= slots * self._backoff:
                self._holding, self._unseen = True, 0
        else:
            self._unseen += images
            counted = not is_full or self._unseen >= slots
            if counted and self._held + images <= slots // 2:
                self._holding, self._unseen = False, 0
                self._backoff = min(_MAX_BACKOFF, 2 * self._backoff)
        return self._holding

    def _admit(self, job: Job) -> Outcome | None:
        images = len(job.images)
        if not self._admission.admits(self._held, images):
            self._backoff = 1
            return OverloadedError(f"{self._queue_size} images wait already, or more than can be answered in time")
        job.reply = job.hold()
        if self._decoders is not None:
            job.decoding = [self._decoders.submit(self._pipeline.decode, data) for data in job.images]
        self._held += images
        self._queue.append(job)
        return None

    def _run(self) -> None:
        """The model's thread: answer what is held."""
        while self._wait_for_requests():
            self._report_held()
            while self._answer_held():
                self._report_held()

    def _wait_for_requests(self) -> bool:
        """False: the model was closed, and nothing is held."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            return bool(self._queue)

    def _report_held(self) -> None:
        try:
            self._on_held(self._held)
        except Exception:  # without its thread, the model would never answer again
            log.exception("the number of held images could not be reported")

    def _answer_held(self) -> bool:
        """Answer one batch of held requests. False: there are none."""
        with self._model:
            started = time.perf_counter()
            jobs = self._take()
            outcomes = self._outcomes(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            _reply(job, outcome)
        if jobs:
            self._admission.observe(_images(jobs), time.perf_counter() - started)
        with self._changed:
            self._held -= _images(jobs)
        return bool(jobs)

    def _take(self) -> list[Job]:
        jobs: list[Job] = []
        images = 0
        with self._changed:
            while self._queue and images + len(self._queue[0].images) <= self._max_batch_size:
                job = self._queue.popleft()
                images += len(job.images)
                jobs.append(job)
        return jobs

    def _outcomes(self, jobs: Sequence[Job]) -> list[Outcome]:
        """As `Pipeline.run`, but nothing is raised."""
        try:
            return self._pipeline.run(jobs)
        except Exception as error:
            log.exception("a batch of %d requests failed", len(jobs))
            return [TridentError(f"the model failed: {error}")] * len(jobs)


def _images(jobs: Sequence[Job]) -> int:
    return sum(len(job.images) for job in jobs)


def _reply(job: Job, outcome: Outcome) -> None:
    assert job.reply is not None, "the request is held"
    try:
        job.reply(outcome)
    except Exception:
        log.exception("a response could not be sent")
