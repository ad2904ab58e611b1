"""Two things that Linux can do for processes and Python has no words for (prctl(2))."""

import ctypes
import signal
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Get a signal when the parent (to be exact: its thread that made this process) ends, however it ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of one's descendants' orphans, so that they can be reaped."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
