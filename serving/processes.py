"""Two process settings of Linux that Python does not offer (prctl(2))."""

import ctypes
import signal
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Get a signal when the parent ends (strictly: the thread of it that created this process), however it ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, so that they can be reaped."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
