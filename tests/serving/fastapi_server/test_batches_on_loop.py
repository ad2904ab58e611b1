"""Batches on the event loop's thread, and the change between the two threads."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from bundle.errors import DeadlineExceededError, OverloadedError, UndecodableImageError
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels
from serving.fastapi_server.models import job
from serving.fastapi_server.models.batcher import Batcher
from serving.fastapi_server.models.job import Job
from serving.fastapi_server.models.placement import TO_LOOP_BELOW_S, TO_THREAD_ABOVE_S, Placement
from tests.serving.fastapi_server.waiting import wait_until

LARGE = bytes([9]) * 2000


class Model:
    """Returns the first byte of each image. Records its batches, and the threads in which it ran."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.decoded_in: dict[int, str] = {}
        self.inferred_in: set[str] = set()
        self.busy = threading.Lock()
        self.fails_on: int | None = None

    def decode(self, data: bytes) -> Pixels:
        if data == b"bad":
            raise UndecodableImageError("bad")
        self.decoded_in[data[0]] = threading.current_thread().name
        return np.full((3, 2, 2), data[0], np.uint8)

    def infer(self, pixels: Pixels) -> Probabilities:
        assert self.busy.acquire(blocking=False), "the model is used in two threads at the same time"
        try:
            values = [int(image[0, 0, 0]) for image in pixels]
            self.batches.append(values)
            self.inferred_in.add(threading.current_thread().name)
            if self.fails_on in values:
                raise RuntimeError("the model failed")
            return np.array([[value] for value in values], np.float32)
        finally:
            self.busy.release()


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake images have no headers: short ones are cheap."""
    monkeypatch.setattr(job, "is_cheap", lambda data: len(data) < 1000)


@asynccontextmanager
async def on_loop(model: Model, **options: Any) -> AsyncIterator[Batcher]:
    placement = options.pop("placement", None) or Placement("model", fixed="event loop")
    made = Batcher(model.decode, model.infer, placement=placement, **{"max_batch_size": 4, **options})
    try:
        yield made
    finally:
        await asyncio.wait_for(made.close(), 10)


def result(job: Job) -> int:
    assert job.probabilities is not None
    return int(job.probabilities[0, 0])


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_jobs_of_one_turn_form_a_batch_and_the_rest_the_next_ones() -> None:
    async def test() -> None:
        model = Model()
        async with on_loop(model) as made:
            done = await asyncio.gather(*(made.future(bytes([i]), 10) for i in range(10)))
            assert [result(job) for job in done] == list(range(10))
            assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
            assert model.inferred_in == {threading.current_thread().name}
            assert [job.batch_size for job in done] == [4] * 8 + [2] * 2
            assert made.depth == 0

    run(test)


def test_the_event_loop_reads_between_two_batches() -> None:
    async def test() -> None:
        model = Model()
        async with on_loop(model) as made:
            seen: list[int] = []
            futures = [made.future(bytes([i]), 10) for i in range(12)]
            while not futures[-1].done():
                seen.append(len(model.batches))
                await asyncio.sleep(0)
            assert {1, 2} <= set(seen)

    run(test)


@pytest.mark.parametrize("fault", ["bad image", "cancelled", "expired"])
def test_a_faulty_member_does_not_affect_the_others(fault: str) -> None:
    async def test() -> None:
        model = Model()
        async with on_loop(model) as made:
            futures = [made.future(bytes([i]), 10) for i in range(3)]
            faulty = made.future(b"bad" if fault == "bad image" else bytes([7]), 1e-9 if fault == "expired" else 10)
            if fault == "cancelled":
                faulty.cancel()
            done = await asyncio.gather(*futures, faulty, return_exceptions=True)
            assert [result(job) for job in done[:3] if isinstance(job, Job)] == [0, 1, 2]
            expected = {
                "bad image": UndecodableImageError,
                "cancelled": asyncio.CancelledError,
                "expired": DeadlineExceededError,
            }
            assert isinstance(done[3], expected[fault])
            assert made.depth == 0

    run(test)


def test_a_failing_batch_runs_one_by_one_and_answers_every_job() -> None:
    async def test() -> None:
        model = Model()
        model.fails_on = 2
        async with on_loop(model) as made:
            done = await asyncio.gather(*(made.future(bytes([i]), 10) for i in range(4)), return_exceptions=True)
            assert isinstance(done[2], RuntimeError)
            assert [result(job) for job in done if isinstance(job, Job)] == [0, 1, 3]

    run(test)


def test_a_full_queue_refuses() -> None:
    async def test() -> None:
        async with on_loop(Model(), queue_size=3) as made:
            futures = [made.future(bytes([i]), 10) for i in range(3)]
            with pytest.raises(OverloadedError):
                made.future(bytes([9]), 10)
            await asyncio.gather(*futures)
            assert result(await made.future(bytes([9]), 10)) == 9

    run(test)


def test_large_images_are_decoded_in_the_model_s_thread() -> None:
    """The model itself stays on the event loop, so that it is never used in two threads."""

    async def test() -> None:
        model = Model()
        async with on_loop(model) as made:
            done = await asyncio.gather(
                *(made.future(LARGE if i % 3 == 0 else bytes([i]), 10) for i in range(12)),
                made.future(np.full((2, 3, 2, 2), 5, np.uint8), 10),
            )
            assert [result(job) for job in done[:12]] == [9 if i % 3 == 0 else i for i in range(12)]
            assert model.decoded_in[9] == "model-model"
            assert model.decoded_in[1] == threading.current_thread().name
            assert model.inferred_in == {threading.current_thread().name}

    run(test)


def test_closing_finishes_the_accepted_jobs() -> None:
    async def test() -> None:
        model = Model()
        async with on_loop(model) as made:
            futures = [made.future(data, 10) for data in (bytes([1]), LARGE, *(bytes([i]) for i in range(8)))]
            await made.close()
            assert all(future.done() and not future.exception() for future in futures)

    run(test)


def test_short_batches_move_to_the_event_loop_and_long_ones_back_while_jobs_arrive() -> None:
    """No job is lost, and the model never runs in two threads at the same time (it asserts that itself)."""

    async def test() -> None:
        model, spin_s = Model(), 0.0
        placement = Placement("model")

        def infer(pixels: Pixels) -> Probabilities:
            until = time.thread_time() + spin_s
            while time.thread_time() < until:
                pass
            return Model.infer(model, pixels)

        made = Batcher(model.decode, infer, placement=placement, max_batch_size=4)
        here = threading.current_thread().name

        async def client(number: int) -> None:
            while not stop:
                data = LARGE if number == 0 else bytes([number])
                assert result(await made.future(data, 10)) == data[0]

        async def until(place: str, thread: str) -> None:
            await wait_until(lambda: placement.place == place and thread in model.inferred_in)

        stop = False
        clients = [asyncio.create_task(client(number)) for number in range(9)]
        await until("event loop", here)
        spin_s = 0.02
        model.inferred_in.clear()
        await until("model thread", "model-model")
        spin_s = 0.0
        model.inferred_in.clear()
        await until("event loop", here)
        stop = True
        await asyncio.gather(*clients)
        await made.close()

    run(test)


def test_the_place_changes_with_hysteresis() -> None:
    placement = Placement("m")
    places = []
    for batch_s in [TO_LOOP_BELOW_S / 2] * 20 + [TO_LOOP_BELOW_S * 1.5] * 50 + [TO_THREAD_ABOVE_S * 1.5] * 50:
        placement.observe(batch_s)
        places.append(placement.place)
    assert places[6] == "model thread"  # too few batches to decide
    assert places[8] == "event loop"
    assert places[69] == "event loop"  # between the limits
    assert places[119] == "model thread"
    for _ in range(100):
        placement.observe((TO_LOOP_BELOW_S + TO_THREAD_ABOVE_S) / 2)
    assert placement.place == "model thread"


def test_a_fixed_place_does_not_change() -> None:
    placement = Placement("m", fixed="model thread")
    for _ in range(50):
        placement.observe(0)
    assert placement.place == "model thread"
