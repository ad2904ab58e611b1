"""One unit of work for a model, and what has become of it."""

import asyncio
import time

from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels


class Job:
    """One encoded image, or a tensor of pixels (uint8 `[N, 3, H, W]`), on its way through the model.

    The result of `future` is the job itself, with `probabilities` (float32 `[rows, classes]`). Times are
    `time.perf_counter()`, in seconds.
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
        """Time for decoding and resizing."""
        return self.decoded - self.started

    @property
    def queue_s(self) -> float:
        """Time in queues: for a thread, and for the batch."""
        return (self.started - self.submitted) + (self.batched - self.decoded)

    @property
    def inference_s(self) -> float:
        """Time of the model, for the whole batch."""
        return self.inferred - self.batched
