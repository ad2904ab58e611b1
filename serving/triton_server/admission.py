"""Admission: a bound on the images that wait in Triton, kept by our own models.

Triton's own bound (`max_queue_size`) makes its batcher miss wake-ups and stall for 500 ms, so it is not used. Instead, the
ensemble's first step, `admission`, takes a slot for every image of a request, or refuses the request at once: if there
are too few slots, or if the images that wait already would take too long. The last step, `postprocess`, frees the slots;
`preprocess` does so for images that it rejects. They run in several processes, which share a table in memory:

    int64 [3]      when the youngest answered image was admitted, when the last image was answered, and the mean time
                   that the server needs for one image
    int64 [slots]  0 for a free slot, or the time at which it was taken         (all in ns of the monotonic clock)

The time for an image runs from the answer before it, or from its own admission if that is later. So idle time does not
count, and of the images of one batch all but the first take no time. The mean moves by 1/64 for each image: this smooths
batches, and follows a change within seconds of work. A request is refused if by this mean it would wait for more than
half of `timeout_s`, behind the images that are in time (the others are not computed). The other half is a reserve; a
longer queue would not make the server faster.

A slot whose image is never answered (Triton failed or cancelled the request) is reclaimed once the image is certainly
lost. Images are answered in order, so it is lost when an image that was admitted `timeout_s` later has been answered; or
after 3 `timeout_s`.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.errors import DeadlineExceededError

Ticket = tuple[int, int]  # slot, and the time at which it was taken

_YOUNGEST, _LAST, _NEED, _HEADER = range(4)
_WEIGHT: Final = 64
_WAIT: Final = 0.5  # of timeout_s


class Admission:
    """The table of one model version. Processes that open the same file share it."""

    def __init__(self, path: Path, slots: int, timeout_s: float, clock: Callable[[], int] = time.monotonic_ns) -> None:
        size = (_HEADER + slots) * 8
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, size)
        table = memoryview(mmap.mmap(self._file, size)).cast("q")
        self._header, self._slots = table[:_HEADER], np.frombuffer(table[_HEADER:], np.int64)
        self._timeout_ns = int(timeout_s * 1e9)
        self._clock = clock

    def take(self, images: int = 1) -> list[Ticket] | None:
        """Take a slot for each image of a request; None if there are too few, or the images would wait too long."""
        slots = self._slots
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            now = self._clock()
            slots[slots < _lost_before(now, self._header[_YOUNGEST], self._timeout_ns)] = 0
            in_time = int(np.count_nonzero(slots > now - self._timeout_ns))  # the others are not computed
            wait_ns = (in_time + images) * self._header[_NEED] if in_time else 0
            if self.waiting + images > len(slots) or wait_ns > _WAIT * self._timeout_ns:
                return None
            tickets = []
            for _ in range(images):
                slot = int(slots.argmin())
                slots[slot] = now
                tickets.append((slot, now))
            return tickets
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def release(self, tickets: Sequence[Ticket]) -> None:
        """Free the slots of answered images. A slot that was reclaimed in the meantime may belong to another image."""
        header = self._header
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            now = self._clock()
            for _, taken in tickets:
                header[_YOUNGEST] = max(header[_YOUNGEST], taken)
                header[_NEED] += (now - max(header[_LAST], taken) - header[_NEED]) // _WEIGHT
                header[_LAST] = now
            self._free(tickets)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def withdraw(self, tickets: Sequence[Ticket]) -> None:
        """Free the slots of rejected images. They overtook others, so they do not count for the mean."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            self._free(tickets)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def check_in_time(self, tickets: Sequence[Ticket]) -> None:
        """Raises: DeadlineExceededError: one of them is late."""
        now = self._clock()
        if any(now - taken > self._timeout_ns for _, taken in tickets):
            raise DeadlineExceededError("the answer was not ready in time")

    @property
    def waiting(self) -> int:
        """How many slots are taken."""
        return int(np.count_nonzero(self._slots))

    def _free(self, tickets: Sequence[Ticket]) -> None:
        for slot, taken in tickets:
            if self._slots[slot] == taken:
                self._slots[slot] = 0


def count_waiting(path: Path, timeout_s: float) -> int:
    """How many images of a table may still be answered; 0 if there is no table."""
    try:
        table: npt.NDArray[np.int64] = np.fromfile(path, np.int64)
    except FileNotFoundError:
        return 0
    lost_before = _lost_before(time.monotonic_ns(), int(table[_YOUNGEST]), int(timeout_s * 1e9))
    slots = table[_HEADER:]
    return int(np.count_nonzero((slots != 0) & (slots >= lost_before)))


def free_all(path: Path) -> None:
    """Free every slot of a table, if there is one. Images that are still answered find that theirs is gone."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
        os.pwrite(file, bytes(os.fstat(file).st_size - _HEADER * 8), _HEADER * 8)
    finally:
        os.close(file)


def _lost_before(now: int, youngest: int, timeout_ns: int) -> int:
    """Images that were admitted before this time, and are not answered, are lost."""
    return max(youngest - timeout_ns, now - 3 * timeout_ns)
