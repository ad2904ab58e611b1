"""Admission: which images an instance of the image model accepts, by how many wait and how long they would wait.

Triton's own bound (`max_queue_size`) makes its batcher miss wake-ups and stall for 500 ms, so it is not used.
"""

from typing import Final

_WINDOW: Final = 64  # images in the mean time per image
_MAX_WAIT: Final = 0.5  # of timeout_s
_FAST_BATCH_S: Final = 0.010
_FAST_AGAIN: Final = 0.8  # of _FAST_BATCH_S


class Admission:
    """The bound of one instance, and its pace: the mean time for one image.

    A request is refused if more than `slots` images would wait, or if by the pace it would wait for more than half of
    `timeout_s`. The other half is a reserve; a longer queue would not make the server faster. Whatever the pace, one
    request is admitted when nothing waits: otherwise nothing could show that the model has become faster.

    Args:
        slots: images that may wait, those that are being computed included.
    """

    def __init__(self, slots: int, timeout_s: float, max_batch_size: int) -> None:
        self.slots = slots
        self.timeout_s = timeout_s
        self.is_fast = True
        self.seconds_per_image = 0.0
        self._max_batch_size = max_batch_size
        self._observed = 0

    def admits(self, waiting: int, images: int) -> bool:
        """Whether a request of `images` is accepted while `waiting` images wait."""
        if not waiting:
            return True
        wait_s = (waiting + images) * self.seconds_per_image
        return waiting + images <= self.slots and wait_s <= _MAX_WAIT * self.timeout_s

    def observe(self, images: int, seconds: float) -> None:
        """Take the time of a batch into the mean. `is_fast` follows: whether a full batch takes a few milliseconds."""
        self._observed = min(_WINDOW, self._observed + images)
        self.seconds_per_image += min(1.0, images / self._observed) * (seconds / images - self.seconds_per_image)
        batch_s = self._max_batch_size * self.seconds_per_image
        self.is_fast = batch_s <= _FAST_BATCH_S * (1.0 if self.is_fast else _FAST_AGAIN)
