"""A request of the image model, and what becomes of it."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from bundle.errors import TridentError
from bundle.preprocess import Pixels

# The answers (JSON) to a request's images, or why it has none.
Outcome = Sequence[bytes] | TridentError


class Job:
    """The images of one request.

    Args:
        hold: called if the request is answered after its `execute` call. Returns how to answer it.
    """

    __slots__ = ("arrived", "decoding", "hold", "images", "reply", "top_k")

    def __init__(self, images: Sequence[bytes], top_k: int, hold: Callable[[], Callable[[Outcome], None]]) -> None:
        self.images = images
        self.top_k = top_k
        self.hold = hold
        self.reply: Callable[[Outcome], None] | None = None
        self.decoding: list[Future[Pixels]] = []  # ahead of the batch
        self.arrived = time.monotonic()
