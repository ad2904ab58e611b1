"""The jobs that wait for a thread: put in by the event loop, taken out in batches by the model's thread, and one by one
by the decoder threads.

Every method may be called in any thread; `take_batch` and `take_undecoded` block.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence

from serving.fastapi_server.models.job import Job


class JobQueue:
    """Two queues, of encoded images and of decoded ones, under one lock.

    Args:
        queue_delay_s: how long a batch waits for more jobs after its first one arrived.
        has_decoders: whether there are decoder threads. Without them the model's thread decodes.
    """

    def __init__(self, max_batch_size: int, queue_delay_s: float, *, has_decoders: bool) -> None:
        self._max_batch_size = max_batch_size
        self._queue_delay_s = queue_delay_s
        self._has_decoders = has_decoders
        lock = threading.Lock()  # guards everything below
        self._for_model = threading.Condition(lock)
        self._for_decoders = threading.Condition(lock)
        self._encoded: deque[Job] = deque()
        self._decoded: deque[Job] = deque()
        self._decoding = 0
        self._model_waits = False
        self._closed = False

    def put(self, jobs: Sequence[Job]) -> None:
        """Add new jobs."""
        with self._for_model:
            for job in jobs:
                (self._encoded if job.pixels is None else self._decoded).append(job)
            self._wake_model()
            self._for_decoders.notify(len(self._encoded))

    def close(self) -> None:
        """No more jobs will come. Threads get what is left, then None."""
        with self._for_model:
            self._closed = True
            self._for_model.notify_all()
            self._for_decoders.notify_all()

    def is_idle(self) -> bool:
        """Whether no job waits or is worked on. True until the next `put`."""
        with self._for_model:
            return self._model_waits and not (self._encoded or self._decoded or self._decoding)

    def take_batch(self) -> list[Job] | None:
        """Wait for jobs, and take a batch of them. None: the queue is closed and empty."""
        with self._for_model:
            while True:
                if self._queue_delay_s and (self._encoded or self._decoded):
                    self._wait_for_full_batch()
                jobs = _take(self._decoded, self._max_batch_size)
                room = self._max_batch_size - sum(job.rows for job in jobs)
                if not self._has_decoders:
                    jobs += _take(self._encoded, room)
                elif self._queue_delay_s or not jobs:
                    jobs += _take_cheap(self._encoded, room if self._queue_delay_s else 1)
                self._for_decoders.notify(len(self._encoded))
                if jobs:
                    return jobs
                if self._closed and not self._encoded and not self._decoding:
                    return None
                self._wait(None)

    def take_undecoded(self) -> Job | None:
        """Wait for an encoded image, and take it. `put_decoded` must follow. None: the queue is closed and empty."""
        with self._for_decoders:
            while not self._encoded:
                if self._closed:
                    return None
                self._for_decoders.wait()
            self._decoding += 1
            return self._encoded.popleft()

    def put_decoded(self, job: Job, *, decoded: bool) -> None:
        """Return a job from `take_undecoded`. It is dropped if it was not decoded."""
        with self._for_model:
            self._decoding -= 1
            if decoded:
                self._decoded.append(job)
            self._wake_model()

    def _wait_for_full_batch(self) -> None:
        """Wait until `queue_delay_s` after the first job's arrival, or until there is a full batch."""
        first = min(queue[0].submitted for queue in (self._encoded, self._decoded) if queue)
        while not self._closed:
            rows = sum(job.rows for queue in (self._encoded, self._decoded) for job in queue)
            left_s = first + self._queue_delay_s - time.perf_counter()
            if rows >= self._max_batch_size or left_s <= 0:
                return
            self._wait(left_s)

    def _wait(self, timeout_s: float | None) -> None:
        self._model_waits = True
        self._for_model.wait(timeout_s)
        self._model_waits = False

    def _wake_model(self) -> None:
        if self._model_waits:
            self._model_waits = False
            self._for_model.notify()


def _take(queue: deque[Job], max_rows: int) -> list[Job]:
    """Take the first jobs, with `max_rows` images at most. Jobs that are done (cancelled, expired) are dropped."""
    jobs: list[Job] = []
    rows = 0
    while queue and rows + queue[0].rows <= max_rows:
        job = queue.popleft()
        if not job.done:
            rows += job.rows
            jobs.append(job)
    return jobs


def _take_cheap(queue: deque[Job], most: int) -> list[Job]:
    """Take the first jobs with an image that is decoded quickly. While the model's thread decodes, nobody is answered."""
    jobs = [job for job in queue if job.is_cheap][:most]
    for job in jobs:
        queue.remove(job)
    return jobs
