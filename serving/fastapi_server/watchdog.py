"""Ends a worker process that is stuck: one whose event loop stands still, or whose model does not return.

Nobody outside can tell with several workers: a stuck one keeps its connections, while the others answer all questions.
Whoever started the process (uvicorn, the supervisor, Docker) starts another one.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Final

log = logging.getLogger(__name__)

EXIT_CODE: Final = 70  # EX_SOFTWARE of sysexits.h
MARGIN_S: Final = 30.0  # beyond the deadline of a request, after which nobody waits for a batch
_CHECK_S: Final = 1.0
_SAY_S: Final = 2.0


def _die(why: str) -> None:
    threading.Timer(_SAY_S, os._exit, (EXIT_CODE,)).start()  # what is stuck may be the log
    log.critical("%s: this process ends", why)
    os._exit(EXIT_CODE)


class Watchdog:
    """Looks every `check_s`. Time in which this process itself was stopped (SIGSTOP, a sleeping machine) does not count.

    Args:
        turns: for each model, a number that changes when its thread takes a batch or gives it back; odd: it has one.
        patience_s: how long nothing may move.
    """

    def __init__(
        self,
        turns: Callable[[], Mapping[str, int]],
        patience_s: float,
        *,
        check_s: float = _CHECK_S,
        die: Callable[[str], None] = _die,
    ) -> None:
        self._turns = turns
        self._checks = max(2, round(patience_s / check_s))
        self._check_s = check_s
        self._die = die
        self._loop = asyncio.get_running_loop()
        self._ticked = True
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _tick(self) -> None:
        self._ticked = True

    def _run(self) -> None:
        seen: dict[str, tuple[int, int]] = {}  # model: its number, and in how many checks that was the same
        late = 0
        while not self._ended.wait(self._check_s):
            late = 0 if self._ticked else late + 1
            if self._ticked:
                self._ticked = False
                try:
                    self._loop.call_soon_threadsafe(self._tick)
                except RuntimeError:  # it is closed
                    return
            try:
                turns = self._turns()
            except (KeyError, RuntimeError):  # a model came or went that moment
                continue
            seen = {
                name: (turn, seen[name][1] + 1 if name in seen and turn % 2 and seen[name][0] == turn else 0)
                for name, turn in turns.items()
            }
            stuck = [f"the model {name} does not return" for name, (_, same) in seen.items() if same >= self._checks]
            stuck += ["the event loop stands still"] if late >= self._checks else []
            if stuck:
                self._die(", ".join(stuck))
                return
