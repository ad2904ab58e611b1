"""The watchdog of a worker process: it ends one that is stuck, and no other."""

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest

from bundle.preprocess import Pixels
from serving.fastapi_server.models.batcher import Batcher
from serving.fastapi_server.watchdog import Watchdog

PIXELS = np.zeros((1, 3, 4, 4), np.uint8)
CHECK_S = 0.02


async def said_of(model_s: float, loop_s: float, batches: int = 1) -> list[str]:
    """What a watchdog with a patience of 0.2 s says when a batch takes `model_s`, and the loop stands still for `loop_s`."""
    said: list[str] = []

    def infer(batch: Pixels) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        time.sleep(model_s)
        return np.zeros((len(batch), 2), np.float32)

    batcher = Batcher(lambda _: PIXELS[0], infer, max_batch_size=1)
    watchdog = Watchdog(lambda: {"digits:1": batcher.turn}, 0.2, check_s=CHECK_S, end_process=said.append)
    for _ in range(batches):
        await batcher.submit(PIXELS, 60)
    time.sleep(loop_s)  # noqa: ASYNC251 - that is the fault
    await asyncio.sleep(0.1)
    watchdog.end()
    await batcher.close()
    return said


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (lambda: said_of(0.0, 0.0), []),
        (lambda: said_of(0.05, 0.0, batches=8), []),  # at work for long, but not at one batch
        (lambda: said_of(1.0, 0.0), ["the model digits:1 does not return"]),
        (lambda: said_of(0.0, 1.0), ["the event loop is blocked"]),
    ],
)
def test_only_what_is_stuck_ends(case: Callable[[], "asyncio.Future[list[str]]"], said: list[str]) -> None:
    assert asyncio.run(case()) == said  # type: ignore[arg-type]
