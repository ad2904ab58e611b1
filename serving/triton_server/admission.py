"""A bound on the images that wait in Triton, kept by our own models.

Triton's own bound (`max_queue_size`) makes its batcher miss wake-ups and stall for 500 ms, so it is not used. Instead
the ensemble's first step, `admission`, takes a place for every image of a request, or refuses the request at once: if
there are too few places, or if what waits already would take too long. The last step, `postprocess`, gives the places
back; so does `preprocess`, for what it refuses. They run in several processes, which share a table in memory:

    int64 [3]       the youngest image that came back (when it was taken), the time at which the last one came back,
                    and the mean of what the server needs for one
    int64 [places]  0, or the time at which the place was taken                  (all in ns of the monotonic clock)

What the server needs for an image is the time since the one before it came back, or since it was taken itself if that
is later: so time without work does not count, and of images that come back at once, as a batch, all but the first need
nothing. The mean moves by 1/64 for each, which smooths batches, and follows a change within a few seconds of work. A
request is refused that would wait for more than half of `timeout_s` by this mean, behind those that are in time (the
others are not computed). The other half is for what it does not foresee; a longer queue would not make the server faster.

A place whose image never comes back (Triton failed or cancelled its request on the way) is free again as soon as that
is certain. Images wait in order, so it is when one came back that was taken `timeout_s` later; or after 3 `timeout_s`.
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

Ticket = tuple[int, int]  # place, and the time at which it was taken

_YOUNGEST, _LAST, _NEED, _HEADER = range(4)
_WEIGHT: Final = 64
_WAIT: Final = 0.5  # of timeout_s


class Admission:
    """The table of one model version; every process that names the same file shares it."""

    def __init__(self, path: Path, places: int, timeout_s: float, clock: Callable[[], int] = time.monotonic_ns) -> None:
        size = (_HEADER + places) * 8
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, size)
        table = memoryview(mmap.mmap(self._file, size)).cast("q")
        self._header, self._places = table[:_HEADER], np.frombuffer(table[_HEADER:], np.int64)
        self._timeout_ns = int(timeout_s * 1e9)
        self._clock = clock

    def take(self, images: int = 1) -> list[Ticket] | None:
        """A place for each image of a request; None if they are too many, or would wait for too long."""
        places = self._places
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            now = self._clock()
            places[places < _lost_before(now, self._header[_YOUNGEST], self._timeout_ns)] = 0
            in_time = int(np.count_nonzero(places > now - self._timeout_ns))  # the others are not computed
            wait_ns = (in_time + images) * self._header[_NEED] if in_time else 0
            if self.waiting + images > len(places) or wait_ns > _WAIT * self._timeout_ns:
                return None
            tickets = []
            for _ in range(images):
                place = int(places.argmin())
                places[place] = now
                tickets.append((place, now))
            return tickets
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def give_back(self, tickets: Sequence[Ticket]) -> None:
        """Free the places of images that came through. One that was thought lost may belong to somebody else."""
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
        """Free the places of images that went no further: they overtook others, and say nothing about the server."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            self._free(tickets)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def check_in_time(self, tickets: Sequence[Ticket]) -> None:
        """Raises: DeadlineExceededError: the time of one of them is up."""
        now = self._clock()
        if any(now - taken > self._timeout_ns for _, taken in tickets):
            raise DeadlineExceededError("the answer did not come in time")

    @property
    def waiting(self) -> int:
        """How many places are taken."""
        return int(np.count_nonzero(self._places))

    def _free(self, tickets: Sequence[Ticket]) -> None:
        for place, taken in tickets:
            if self._places[place] == taken:
                self._places[place] = 0


def count_waiting(path: Path, timeout_s: float) -> int:
    """How many images may still come back, by a table; 0 if there is none."""
    try:
        table: npt.NDArray[np.int64] = np.fromfile(path, np.int64)
    except FileNotFoundError:
        return 0
    lost_before = _lost_before(time.monotonic_ns(), int(table[_YOUNGEST]), int(timeout_s * 1e9))
    places = table[_HEADER:]
    return int(np.count_nonzero((places != 0) & (places >= lost_before)))


def free_all(path: Path) -> None:
    """Free every place of a table, if there is one. What comes back after all finds that it has none."""
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
    """An image that was taken before this, and has not come back, will not."""
    return max(youngest - timeout_ns, now - 3 * timeout_ns)
