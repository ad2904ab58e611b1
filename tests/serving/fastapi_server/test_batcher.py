"""The batcher, with a fake model that the test can block."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from bundle.errors import DeadlineExceededError, OverloadedError, RequestError, UnavailableError, UndecodableImageError
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels
from serving.fastapi_server.models.batcher import Batcher
from serving.fastapi_server.models.job import Job
from tests.serving.fastapi_server.waiting import wait_until


class Model:
    """Returns the first byte of each image. Records its batches, and can be blocked."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.fails_on: int | None = None

    def decode(self, data: bytes) -> Pixels:
        if data == b"bad":
            raise UndecodableImageError("bad")
        return np.full((3, 2, 2), data[0], np.uint8)

    def infer(self, pixels: Pixels) -> Probabilities:
        values = [int(image[0, 0, 0]) for image in pixels]
        self.batches.append(values)
        self.entered.set()
        assert self.go.wait(10)
        if self.fails_on in values:
            raise RuntimeError("the model failed")
        return np.array([[value] for value in values], np.float32)

    def block(self) -> None:
        self.go.clear()
        self.entered.clear()


@asynccontextmanager
async def batcher(model: Model, **options: Any) -> AsyncIterator[Batcher]:
    made = Batcher(model.decode, model.infer, **{"max_batch_size": 4, **options})
    try:
        yield made
    finally:
        model.go.set()
        await asyncio.wait_for(made.close(), 10)


def result(job: Job) -> int:
    assert job.probabilities is not None
    return int(job.probabilities[0, 0])


async def blocked(model: Model, made: Batcher) -> "asyncio.Future[Job]":
    """Submit a first job, and block the model with it."""
    model.block()
    first = made.future(bytes([100]), 10)
    await asyncio.to_thread(model.entered.wait, 5)
    return first


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


DECODERS = pytest.mark.parametrize("decoders", [0, 2])


@pytest.mark.serial
@DECODERS
def test_a_single_job_starts_at_once(decoders: int) -> None:
    async def test() -> None:
        model = Model()
        async with batcher(model, decoders=decoders) as made:
            job = await made.future(bytes([7]), 1)
            assert result(job) == 7
            assert model.batches == [[7]]
            assert job.queue_s < 0.2

    run(test)


@DECODERS
def test_jobs_that_arrive_while_the_model_is_busy_form_the_next_batch(decoders: int) -> None:
    async def test() -> None:
        model = Model()
        async with batcher(model, decoders=decoders) as made:
            first = await blocked(model, made)
            others = [made.future(bytes([i]), 10) for i in range(6)]
            queue = made._queue._decoded if decoders else made._queue._encoded
            await wait_until(lambda: len(queue) == 6)
            model.go.set()
            assert [result(job) for job in await asyncio.gather(first, *others)] == [100, *range(6)]
            sizes = [len(batch) for batch in model.batches]
            assert sizes[0] == 1
            assert max(sizes) <= 4
            assert sizes == [1, 4, 2]
            assert made.depth == 0

    run(test)


@DECODERS
@pytest.mark.parametrize("position", [0, 2, 4])
@pytest.mark.parametrize("fault", ["bad image", "cancelled", "expired"])
def test_a_faulty_member_does_not_affect_the_others(decoders: int, position: int, fault: str) -> None:
    """The first, a middle and the last member: undecodable, cancelled, or expired."""

    async def test() -> None:
        model = Model()
        async with batcher(model, decoders=decoders, max_batch_size=8) as made:
            first = await blocked(model, made)
            waiting = []
            for i in range(5):
                faulty = i == position
                payload = b"bad" if faulty and fault == "bad image" else bytes([i])
                waiting.append(made.future(payload, 0.05 if faulty and fault == "expired" else 10))
            if fault == "cancelled":
                waiting[position].cancel()
            elif fault == "expired":
                await asyncio.wait([waiting[position]], timeout=5)
            model.go.set()
            done = await asyncio.gather(first, *waiting, return_exceptions=True)
            outcome = done.pop(position + 1)
            expected = {
                "bad image": UndecodableImageError,
                "cancelled": asyncio.CancelledError,
                "expired": DeadlineExceededError,
            }
            assert isinstance(outcome, expected[fault])
            assert [result(job) for job in done if isinstance(job, Job)] == [
                100,
                *(i for i in range(5) if i != position),
            ]
            assert position not in [value for batch in model.batches for value in batch]
            assert made.depth == 0

    run(test)


@DECODERS
def test_cancelled_jobs_make_no_batch(decoders: int) -> None:
    async def test() -> None:
        model = Model()
        async with batcher(model, decoders=decoders) as made:
            first = await blocked(model, made)
            for future in [made.future(bytes([i]), 10) for i in range(3)]:
                future.cancel()
            model.go.set()
            await first
            assert result(await made.future(bytes([9]), 10)) == 9
            assert model.batches == [[100], [9]]

    run(test)


def test_a_job_that_is_cancelled_in_the_model_does_not_affect_others() -> None:
    async def test() -> None:
        model = Model()
        async with batcher(model) as made:
            first = await blocked(model, made)
            first.cancel()
            second = made.future(bytes([1]), 10)
            model.go.set()
            assert result(await second) == 1
            assert made.depth == 0

    run(test)


@pytest.mark.serial
def test_a_full_queue_refuses_at_once_with_a_retry_time() -> None:
    async def test() -> None:
        model = Model()
        async with batcher(model, queue_size=3) as made:
            first = await blocked(model, made)
            others = [made.future(bytes([i]), 10) for i in range(2)]
            started = time.perf_counter()
            with pytest.raises(OverloadedError) as caught:
                made.future(bytes([9]), 10)
            assert time.perf_counter() - started < 0.1
            assert caught.value.retry_after_s is not None
            assert caught.value.retry_after_s >= 1
            model.go.set()
            await asyncio.gather(first, *others)
            assert result(await made.future(bytes([9]), 10)) == 9

    run(test)


def test_the_members_of_a_failed_batch_run_one_by_one() -> None:
    async def test() -> None:
        model = Model()
        model.fails_on = 2
        async with batcher(model) as made:
            first = await blocked(model, made)
            others = [made.future(bytes([i]), 10) for i in range(4)]
            model.go.set()
            await first
            done = await asyncio.gather(*others, return_exceptions=True)
            assert isinstance(done[2], RuntimeError)
            assert [result(job) for job in done if isinstance(job, Job)] == [0, 1, 3]

    run(test)


@pytest.mark.serial
@DECODERS
def test_a_queue_delay_waits_for_more_jobs_unless_the_batch_is_full(decoders: int) -> None:
    async def test() -> None:
        model = Model()
        async with batcher(model, decoders=decoders, queue_delay_s=1) as made:
            started = time.perf_counter()
            jobs = []
            for i in range(3):
                jobs.append(made.future(bytes([i]), 10))
                await asyncio.sleep(0.03)
            await asyncio.gather(*jobs)
            assert model.batches == [[0, 1, 2]]
            assert 0.9 < time.perf_counter() - started < 5
            started = time.perf_counter()
            await asyncio.gather(*(made.future(bytes([i]), 10) for i in range(4)))
            assert time.perf_counter() - started < 0.9  # a full batch does not wait
            assert sorted(model.batches[1]) == [0, 1, 2, 3]

    run(test)


def test_tensors_share_batches_with_images() -> None:
    async def test() -> None:
        model = Model()
        async with batcher(model) as made:
            first = await blocked(model, made)
            tensor = np.stack([np.full((3, 2, 2), i, np.uint8) for i in (11, 12)])
            jobs = [made.future(tensor, 10), made.future(bytes([1]), 10)]
            await wait_until(lambda: made._queue._decoded and made._queue._encoded)
            model.go.set()
            await first
            two, one = await asyncio.gather(*jobs)
            assert two.probabilities is not None
            assert two.probabilities.ravel().tolist() == [11, 12]
            assert result(one) == 1
            with pytest.raises(RequestError, match="at most 4"):
                made.future(np.zeros((5, 3, 2, 2), np.uint8), 10)

    run(test)


@DECODERS
def test_closing_finishes_the_accepted_jobs_and_accepts_no_new_ones(decoders: int) -> None:
    async def test() -> None:
        model = Model()
        made = Batcher(model.decode, model.infer, max_batch_size=4, decoders=decoders)
        first = await blocked(model, made)
        others = [made.future(bytes([i]), 10) for i in range(3)]
        closing = asyncio.create_task(made.close())
        await wait_until(lambda: made._draining)
        with pytest.raises(UnavailableError):
            made.future(bytes([9]), 10)
        assert not closing.done()
        model.go.set()
        await closing
        assert [result(job) for job in await asyncio.gather(first, *others)] == [100, 0, 1, 2]
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("model-")]

    run(test)


def test_every_batch_is_reported_once() -> None:
    async def test() -> None:
        model = Model()
        seen: list[Job] = []

        def on_batch(jobs: Sequence[Job]) -> None:
            seen.extend(jobs)

        async with batcher(model, on_batch=on_batch) as made:
            await asyncio.gather(*(made.future(bytes([i]), 10) for i in range(20)), return_exceptions=True)
            await asyncio.gather(made.future(b"bad", 10), return_exceptions=True)
        assert len(seen) == len(set(seen)) == 21

    run(test)


@DECODERS
def test_a_thousand_jobs_under_random_cancellation(decoders: int) -> None:
    async def test() -> None:
        model = Model()
        random = np.random.default_rng(decoders)
        async with batcher(model, decoders=decoders, max_batch_size=8, queue_size=2000) as made:
            futures = []
            for i in range(1000):
                futures.append(made.future(b"bad" if i % 10 == 3 else bytes([i % 100]), 20))
                if random.random() < 0.3:
                    futures[int(random.integers(len(futures)))].cancel()
                if i % 50 == 0:
                    await asyncio.sleep(0)
            done = await asyncio.gather(*futures, return_exceptions=True)
            for i, outcome in enumerate(done):
                if isinstance(outcome, Job):
                    assert result(outcome) == i % 100
                elif isinstance(outcome, UndecodableImageError):
                    assert i % 10 == 3
                else:
                    assert isinstance(outcome, asyncio.CancelledError)
            assert made.depth == 0

    run(test)


def test_a_cancelled_job_frees_its_place_in_the_queue() -> None:
    async def test() -> None:
        model = Model()
        async with batcher(model, queue_size=3) as made:
            first = await blocked(model, made)
            leaving = [made.future(bytes([i]), 10) for i in range(2)]
            for future in leaving:
                future.cancel()
            await asyncio.sleep(0)
            assert made.depth == 1
            staying = made.futures([bytes([7]), bytes([8])], 10)
            with pytest.raises(OverloadedError):
                made.futures([bytes([9])], 10)
            with pytest.raises(RequestError, match="at most 3"):
                made.futures([b"x"] * 4, 10)
            model.go.set()
            assert [result(job) for job in await asyncio.gather(first, *staying)] == [100, 7, 8]
            assert [7, 8] in model.batches

    run(test)


@DECODERS
def test_a_job_that_is_cancelled_before_it_starts_leaves_nothing(decoders: int) -> None:
    async def test() -> None:
        model = Model()
        async with batcher(model, decoders=decoders) as made:
            cancelled = made.submit(bytes([1]), 0.05, lambda _: None)
            made.cancel(cancelled)
            await asyncio.sleep(0.1)  # past its deadline
            assert result(await made.future(bytes([2]), 10)) == 2
            assert made.depth == 0
            assert made._in_threads == {}
            assert model.batches == [[2]]

    run(test)


def test_decoder_threads_decode_large_images() -> None:
    """Meanwhile, the model answers other requests."""
    large = bytes(100_000)

    async def test() -> None:
        model = Model()
        slow, started = threading.Event(), threading.Event()

        def decode(data: bytes) -> Pixels:
            if data == large:
                started.set()
                slow.wait(10)
            return model.decode(data[:1])

        model.go.set()
        made = Batcher(decode, model.infer, max_batch_size=4, decoders=2)
        waiting = made.future(large, 10)
        await asyncio.to_thread(started.wait, 10)
        assert result(await made.future(bytes([3]), 5)) == 3
        slow.set()
        assert result(await waiting) == 0
        await made.close()

    run(test)
