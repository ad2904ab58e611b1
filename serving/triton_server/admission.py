"""A bound on the pictures that wait in Triton, kept by our own models.

Triton's own bound (`max_queue_size`) makes its batcher miss wake-ups and stall for 500 ms, so it is not used. Instead
the ensemble's first step, `admission`, takes a place for every picture, or refuses it at once if there is none; its last
step, `postprocess`, gives the place back. They run in several processes, which share a table in memory:

    int64 [places]: 0, or the time (monotonic, ns) at which the place was taken

A place whose picture never arrives at `postprocess` (Triton failed or cancelled its request on the way) is free again when
its time is up.
"""

import fcntl
import mmap
import os
import time
from pathlib import Path

import numpy as np

Ticket = tuple[int, int]  # place, and the time at which it was taken


class Admission:
    """The table of one model version; every process that names the same file shares it."""

    def __init__(self, path: Path, places: int, timeout_s: float) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, places * 8)
        self._taken = np.frombuffer(mmap.mmap(self._file, places * 8), np.int64)
        self._timeout_ns = int(timeout_s * 1e9)

    def take(self) -> Ticket | None:
        """A place, or None if all are taken."""
        now = time.monotonic_ns()
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            place = int(np.argmin(self._taken))  # a free one, or else the oldest
            if now - int(self._taken[place]) < self._timeout_ns:
                return None
            self._taken[place] = now
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return place, now

    def give_back(self, ticket: Ticket) -> None:
        """Free a place, unless its time was up and somebody else has it by now."""
        place, taken = ticket
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        if self._taken[place] == taken:
            self._taken[place] = 0
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def is_late(self, ticket: Ticket) -> bool:
        """Whether its time is up."""
        return time.monotonic_ns() - ticket[1] > self._timeout_ns

    @property
    def waiting(self) -> int:
        """How many places are taken."""
        return int(np.count_nonzero(self._taken))


def count_waiting(path: Path) -> int:
    """How many places of a table are taken, also by whom nobody waits for any more; 0 if there is no table."""
    try:
        return int(np.count_nonzero(np.fromfile(path, np.int64)))
    except FileNotFoundError:
        return 0
