"""End a worker process that is stuck: its event loop is blocked, or its model does not return.

With several workers, a probe from outside does not notice it: the other workers answer the probe, while the stuck worker
keeps its connections. The parent (uvicorn, the supervisor, Docker) starts a new process.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Final

log = logging.getLogger(__name__)

EXIT_CODE: Final = 70  # EX_SOFTWARE of sysexits.h
MARGIN_S: Final = 30.0  # added to the deadline of a request
_CHECK_S: Final = 1.0
_LOG_S: Final = 2.0


def _end_process(reason: str) -> None:
    threading.Timer(_LOG_S, os._exit, (EXIT_CODE,)).start()  # the log may be what is stuck
    log.critical("%s: ending this process", reason)
    os._exit(EXIT_CODE)


class Watchdog:
    """Checks the process every `check_s`. Time in which the process itself is stopped (SIGSTOP) does not count.

    Args:
        turns: by model, a number that changes when its thread takes a batch and when it finishes it; an odd number: it is busy.
        patience_s: how long the event loop or a batch may take.
        end_process: called with the reason, once.
    """

    def __init__(
        self,
        turns: Callable[[], Mapping[str, int]],
        patience_s: float,
        *,
        check_s: float = _CHECK_S,
        end_process: Callable[[str], None] = _end_process,
    ) -> None:
        self._turns = turns
        self._checks = max(2, round(patience_s / check_s))
        self._check_s = check_s
        self._end_process = end_process
        self._loop = asyncio.get_running_loop()
        self._ticked = True
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def end(self) -> None:
        """Stop checking."""
        self._ended.set()

    def _tick(self) -> None:
        self._ticked = True

    def _run(self) -> None:
        seen: dict[str, tuple[int, int]] = {}  # by model: its turn, and in how many checks it was the same
        late = 0
        while not self._ended.wait(self._check_s):
            late = 0 if self._ticked else late + 1
            if self._ticked:
                self._ticked = False
                try:
                    self._loop.call_soon_threadsafe(self._tick)
                except RuntimeError:  # the loop is closed
                    return
            try:
                turns = self._turns()
            except (KeyError, RuntimeError):  # a model was loaded or unloaded meanwhile
                continue
            seen = {
                name: (turn, seen[name][1] + 1 if name in seen and turn % 2 and seen[name][0] == turn else 0)
                for name, turn in turns.items()
            }
            stuck = [f"the model {name} does not return" for name, (_, same) in seen.items() if same >= self._checks]
            stuck += ["the event loop is blocked"] if late >= self._checks else []
            if stuck:
                self._end_process(", ".join(stuck))
                return
