"""Wait for a condition instead of sleeping, and never without a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_until(
    condition: Callable[[], Result | None],
    timeout_s: float = 60.0,
    *,
    pause_s: float = 0.02,
    shown: Callable[[], object] = lambda: "the condition does not hold",
) -> Result:
    """Call `condition` until its result is true, and return that.

    Raises:
        AssertionError: it was not true within `timeout_s`; the message is what `shown` returns.
    """
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"after {timeout_s:g} s: {shown()}"
        time.sleep(pause_s)
    return result
