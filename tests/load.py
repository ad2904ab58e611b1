"""Requests that go on in the background while a test does something else."""

import threading
from collections.abc import Callable, Sequence
from typing import Self


class Load:
    """Every function is called over and over, each in a thread of its own, until the end of the block."""

    def __init__(self, asks: Sequence[Callable[[], object]]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(ask,)) for ask in asks]

    def _repeat(self, ask: Callable[[], object]) -> None:
        while not self._stop.is_set():
            ask()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
