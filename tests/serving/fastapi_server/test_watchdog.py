"""The watchdog of a worker process ends it if it is stuck, and only then."""

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest

from bundle.preprocess import Pixels
from serving.fastapi_server.models.batcher import Batcher
from serving.fastapi_server.watchdog import Watchdog

pytestmark = pytest.mark.serial

PIXELS = np.zeros((1, 3, 4, 4), np.uint8)
CHECK_S = 0.02


async def reasons(model_s: float, loop_s: float, batches: int = 1) -> list[str]:
    """Why a watchdog with a patience of 0.2 s ends the process, if a batch takes `model_s` and the event loop is blocked
    for `loop_s`.
    """
    reasons: list[str] = []

    def infer(batch: Pixels) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        time.sleep(model_s)
        return np.zeros((len(batch), 2), np.float32)

    batcher = Batcher(lambda _: PIXELS[0], infer, max_batch_size=1)
    watchdog = Watchdog(lambda: {"digits:1": batcher.turn}, 0.2, check_s=CHECK_S, end_process=reasons.append)
    for _ in range(batches):
        await batcher.future(PIXELS, 60)
    time.sleep(loop_s)  # noqa: ASYNC251 - this is the fault
    await asyncio.sleep(0.1)
    watchdog.end()
    await batcher.close()
    return reasons


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (lambda: reasons(0.0, 0.0), []),
        (lambda: reasons(0.05, 0.0, batches=8), []),  # busy for long, but not with one batch
        (lambda: reasons(1.0, 0.0), ["the model digits:1 does not return"]),
        (lambda: reasons(0.0, 1.0), ["the event loop is blocked"]),
    ],
)
def test_only_a_stuck_process_ends(case: Callable[[], "asyncio.Future[list[str]]"], expected: list[str]) -> None:
    assert asyncio.run(case()) == expected  # type: ignore[arg-type]
