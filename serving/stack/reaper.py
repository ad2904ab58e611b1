"""Kills the process groups that a killed supervisor leaves behind. Standard library only.

    python -IS serving/stack/reaper.py     (reads `+GROUP` and `-GROUP` lines; acts when its input ends)

The kernel kills the servers themselves when the supervisor dies, but not their children: a stub of Triton that was in the
middle of a request then waits for ever on a semaphore in shared memory.
"""

import contextlib
import os
import signal
import subprocess
import sys


class Reaper:
    """The reaper of this process, as a child of it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-IS", __file__], stdin=subprocess.PIPE, cwd="/", start_new_session=True
        )

    def watch(self, group: int) -> None:
        """Kill this process group if this process dies."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """The process group has ended."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """End the reaper. It kills the groups that it still watches."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the reaper was killed; the servers are more important
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def main() -> None:
    """Keep the list of process groups until the input ends, then kill them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
