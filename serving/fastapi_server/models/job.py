"""One unit of work for a model, and what has become of it."""

import time
from collections.abc import Callable

from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels, is_cheap


class Job:
    """One encoded image, or a tensor of pixels (uint8 `[N, 3, H, W]`), on its way through the model.

    When it is done, it has either `probabilities` (float32 `[rows, classes]`) or an `error`. Times are
    `time.perf_counter()`, in seconds.

    Args:
        on_done: called on the event loop when the job is done, unless it was cancelled.
        deadline: when the job expires.
    """

    __slots__ = (
        "batch_size",
        "batched",
        "deadline",
        "decoded",
        "done",
        "error",
        "inferred",
        "on_done",
        "payload",
        "pixels",
        "probabilities",
        "rows",
        "started",
        "submitted",
    )

    def __init__(self, payload: bytes | Pixels, on_done: "Callable[[Job], None]", timeout_s: float) -> None:
        self.payload = payload
        self.on_done = on_done
        if isinstance(payload, bytes):
            self.rows = 1
            self.pixels: Pixels | None = None
        else:
            self.rows = len(payload)
            self.pixels = payload
        self.probabilities: Probabilities | None = None
        self.error: Exception | None = None
        self.done = False  # finished, expired or cancelled
        self.batch_size = 0
        now = time.perf_counter()
        self.submitted = self.started = self.decoded = self.batched = self.inferred = now
        self.deadline = now + timeout_s

    @property
    def is_cheap(self) -> bool:
        """Whether it has its pixels already, or they are decoded quickly."""
        return self.pixels is not None or (isinstance(self.payload, bytes) and is_cheap(self.payload))

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
