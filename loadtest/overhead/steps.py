"""The progress of a run, with the time left: a bar over estimated seconds."""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.overhead.choosing import OnStep
from loadtest.overhead.contestants import Contestant

_START_S: Final = 3.5


class Steps:
    """A context manager that shows a bar. `total_s`: the estimated duration of all steps."""

    def __init__(self, console: Console, total_s: float) -> None:
        columns = (BarColumn(30), TextColumn("left:"), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, transient=True, speed_estimate_period=120)
        self._task = self._progress.add_task("", total=total_s)
        self._present_s = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, text: str, seconds: float) -> None:
        """End the present step, and begin one that takes about `seconds`."""
        self._progress.update(self._task, advance=self._present_s, description=text)
        self._present_s = seconds

    def skip(self, seconds: float) -> None:
        """Count steps as done that are not needed."""
        self._progress.update(self._task, advance=seconds)


def show_steps(steps: Steps, turn_s: float, settle_s: float = 0.0) -> OnStep:
    """Show the steps of `best_settings`.

    Args:
        turn_s: the estimated duration of a turn; `settle_s`: time that is added to each start.
    """

    def begin(kind: str, text: str, count: int) -> None:
        if kind == "skip":
            steps.skip(count * turn_s)
        else:
            steps.begin(text, _START_S + settle_s if kind == "start" else turn_s)

    return begin


def choosing_s(
    every: Sequence[Contestant], concurrencies: int, rounds: int, turn_s: float, settle_s: float = 0.0
) -> float:
    """The estimated duration of `best_settings`."""
    starts = len(every) * (concurrencies if any(one.adapts for one in every) else 1)
    turns = rounds * len(every) * concurrencies if len(every) > 1 else 0
    return starts * (_START_S + settle_s) + turns * turn_s
