"""Where batches run: on the event loop's thread, or in the model's thread.

Handing a batch to another thread and back costs more than a small model needs. A batch that takes only a few milliseconds
runs on the event loop's thread: it delays other requests less than the hand-over would. A longer one would hold up health
checks, refusals and new connections, so it runs in the model's thread.
"""

import logging
from typing import Final, Literal

log = logging.getLogger(__name__)

Place = Literal["event loop", "model thread"]

# Hysteresis: a model near one limit does not change its place with every batch.
TO_LOOP_BELOW_S: Final = 0.003
TO_THREAD_ABOVE_S: Final = 0.006
_SMOOTHING: Final = 0.1
_LEAST_BATCHES: Final = 8


class Placement:
    """Decides by the measured CPU time of recent batches.

    Args:
        name: of the model, for the log.
        fixed: the place, if it does not depend on the measurements.
    """

    def __init__(self, name: str, fixed: Place | None = None) -> None:
        self._name = name
        self._fixed = fixed
        self._batches = 0
        self.place: Place = fixed or "model thread"
        self.batch_s = 0.0  # smoothed CPU time of a batch, decoding included

    def fix(self, place: Place) -> None:
        """Stay at `place` from now on."""
        self._fixed = self.place = place

    def observe(self, batch_s: float) -> None:
        """Take the CPU time of one batch into account."""
        self._batches += 1
        self.batch_s += (batch_s - self.batch_s) * max(_SMOOTHING, 1 / self._batches)
        if self._fixed is not None or self._batches < _LEAST_BATCHES:
            return
        if self.place == "event loop" and self.batch_s > TO_THREAD_ABOVE_S:
            self._move("model thread")
        elif self.place == "model thread" and self.batch_s < TO_LOOP_BELOW_S:
            self._move("event loop")

    def _move(self, place: Place) -> None:
        self.place = place
        log.info("%s: batches take %.1f ms and run on the %s from now on", self._name, self.batch_s * 1000, place)
