"""The logic of Triton's image model, with its real threads, without Triton and with a model that takes as long as it should."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest

from bundle.errors import DeadlineExceededError, ImageError, OverloadedError, TridentError
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels
from bundle.store import Bundle
from serving.triton_server.admission import Admission
from serving.triton_server.image_model import ImageModel
from serving.triton_server.job import Job, Outcome
from serving.triton_server.pipeline import Infer, Pipeline
from tests.waiting import wait_until

BATCH = 4
QUEUE = 8
SLOTS = QUEUE + BATCH
SLOW_S = 0.05  # for a batch
Serving = Callable[..., AbstractContextManager[ImageModel]]


class Later:
    """The outcomes of held requests, by the image."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[bytes, Outcome]] = []

    def job(self, image: bytes, images: int = 1) -> Job:
        def keep(outcome: Outcome) -> None:
            self.outcomes.append((image, outcome))

        return Job([image] * images, 1, lambda: keep)


class Model:
    """A model that takes `seconds` for a batch."""

    def __init__(self, classes: int, seconds: float = 0.0) -> None:
        self.classes, self.seconds = classes, seconds
        self.batches: list[int] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def infer(self, pixels: Pixels) -> Probabilities:
        self.may_run.wait(10)
        time.sleep(self.seconds)
        self.batches.append(len(pixels))
        return np.full((len(pixels), self.classes), 1 / self.classes, np.float32)


@pytest.fixture
def later() -> Later:
    return Later()


@pytest.fixture
def fast(digits: Bundle) -> Model:
    return Model(len(digits.manifest.labels))


@pytest.fixture
def slow(digits: Bundle) -> Model:
    return Model(len(digits.manifest.labels), seconds=SLOW_S)


@pytest.fixture
def image(digits: Bundle) -> bytes:
    return digits.golden_inputs()[0][1]


@pytest.fixture
def serving(digits: Bundle) -> Serving:
    @contextmanager
    def serving(infer: Infer, *, pace_s: float = 0.0, timeout_s: float = 10, decoders: int = 0) -> Iterator[ImageModel]:
        """`pace_s`: the time per image that was measured when the model was loaded."""
        pipeline = Pipeline(digits.manifest, infer, max_image_pixels=10**6, timeout_s=timeout_s)
        admission = Admission(SLOTS, timeout_s, BATCH)
        admission.observe(64, 64 * pace_s)
        model = ImageModel(pipeline, admission, max_batch_size=BATCH, queue_size=QUEUE, decoders=decoders)
        try:
            yield model
        finally:
            model.close()

    return serving


def answered(outcomes: Sequence[Outcome | None]) -> int:
    return sum(not isinstance(outcome, TridentError) for outcome in outcomes if outcome is not None)


def test_a_fast_model_answers_within_the_call(serving: Serving, fast: Model, later: Later, image: bytes) -> None:
    with serving(fast.infer) as model:
        outcomes = model.execute([later.job(image, 2), later.job(b"broken"), later.job(image)])
    two, broken, one = outcomes
    assert isinstance(two, list)
    assert isinstance(one, list)
    assert [len(two), len(one)] == [2, 1]
    assert two[0].startswith(b'{"model":"digits","version":1,"predictions":[{"label":')
    assert isinstance(broken, ImageError)
    assert fast.batches == [3]
    assert later.outcomes == []


def test_a_slow_model_holds_requests_and_answers_them_in_batches(
    serving: Serving, slow: Model, later: Later, image: bytes
) -> None:
    with serving(slow.infer, pace_s=SLOW_S) as model:
        slow.may_run.clear()
        for _ in range(5):
            assert model.execute([later.job(image), later.job(image)]) == [None, None]
        assert model.execute([later.job(b"broken")]) == [None]
        slow.may_run.set()
        wait_until(lambda: not model.held, 10)
    assert answered([outcome for _, outcome in later.outcomes]) == 10
    assert [type(outcome).__mro__[1] for image, outcome in later.outcomes if image == b"broken"] == [ImageError]
    assert max(slow.batches) == BATCH
    assert sum(slow.batches) == 10
    assert len(slow.batches) <= 4


@pytest.mark.parametrize("decoders", [0, 2])
def test_a_slow_model_refuses_at_once_what_is_too_much(
    serving: Serving, slow: Model, later: Later, image: bytes, decoders: int
) -> None:
    with serving(slow.infer, pace_s=SLOW_S, decoders=decoders) as model:
        slow.may_run.clear()
        outcomes = [outcome for _ in range(10) for outcome in model.execute([later.job(image, 2)])]
        refused = [outcome for outcome in outcomes if isinstance(outcome, OverloadedError)]
        assert len(refused) == 10 - SLOTS // 2
        assert refused[0].message.startswith("8 images wait already")
        assert model.held == SLOTS
        slow.may_run.set()
    assert answered([outcome for _, outcome in later.outcomes]) == SLOTS // 2


def test_a_fast_model_counts_what_waits_from_time_to_time(
    serving: Serving, fast: Model, later: Later, image: bytes
) -> None:
    """It cannot see Triton's queue, but full batches one after another mean that there is one."""

    def batch() -> list[Job]:
        return [later.job(image) for _ in range(BATCH)]

    with serving(fast.infer) as model:
        assert None not in model.execute(batch()) + model.execute(batch())
        fast.may_run.clear()
        outcomes = [outcome for _ in range(5) for outcome in model.execute(batch())]
        assert outcomes.count(None) == SLOTS
        assert sum(isinstance(outcome, OverloadedError) for outcome in outcomes) == 5 * BATCH - SLOTS
        fast.may_run.set()
        wait_until(lambda: len(later.outcomes) == SLOTS, 10)
        assert answered(model.execute([later.job(image)])) == 1  # within the call again


def test_a_fast_model_that_nothing_waits_for_holds_nothing(
    serving: Serving, fast: Model, later: Later, image: bytes
) -> None:
    with serving(fast.infer) as model:
        for _ in range(3 * SLOTS):
            assert answered(model.execute([later.job(image)])) == 1
    assert later.outcomes == []


def test_held_requests_are_answered_before_later_ones(
    serving: Serving, fast: Model, later: Later, image: bytes
) -> None:
    with serving(fast.infer) as model:
        for _ in range(20 * SLOTS):
            model.execute([later.job(image) for _ in range(BATCH)])
            assert model.held <= SLOTS
        wait_until(lambda: model.held == 0, 10)
    assert 0 < len(later.outcomes) < 0.8 * 20 * SLOTS * BATCH
    assert answered([outcome for _, outcome in later.outcomes]) == len(later.outcomes)


def test_a_call_that_took_long_is_followed_by_a_count(
    serving: Serving, digits: Bundle, later: Later, image: bytes
) -> None:
    once = Model(len(digits.manifest.labels), seconds=0.03)
    with serving(once.infer) as model:
        assert answered(model.execute([later.job(image)])) == 1
        once.seconds = 0.0
        assert model.execute([later.job(image) for _ in range(BATCH)]) == [None] * BATCH


def test_a_late_request_is_not_computed(serving: Serving, slow: Model, later: Later, image: bytes) -> None:
    slow.seconds = 0.2
    with serving(slow.infer, timeout_s=0.3) as model:
        job = later.job(image)
        job.arrived -= 1
        (late,) = model.execute([job])
        assert isinstance(late, DeadlineExceededError)
        assert slow.batches == []
        job = later.job(image)
        job.arrived -= 0.2
        (late,) = model.execute([job])  # computed, but too late for its client
        assert isinstance(late, DeadlineExceededError)
        assert slow.batches == [1]


def test_a_model_that_fails_fails_its_batch_only(
    serving: Serving, slow: Model, later: Later, image: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    fails = True

    def infer(pixels: Pixels) -> Probabilities:
        if fails:
            raise RuntimeError("out of memory")
        return slow.infer(pixels)

    with serving(infer) as model, pytest.raises(RuntimeError, match="out of memory"):
        model.execute([later.job(image)])  # within the call: Triton fails its requests
    with serving(infer, pace_s=SLOW_S) as model:
        assert model.execute([later.job(image)]) == [None]
        wait_until(lambda: len(later.outcomes) == 1, 10)
        fails = False
        assert model.execute([later.job(image)]) == [None]
        wait_until(lambda: len(later.outcomes) == 2, 10)
    (_, failed), (_, answer) = later.outcomes
    assert isinstance(failed, TridentError)
    assert failed.status == 500
    assert answered([answer]) == 1
    assert "a batch of 1 requests failed" in caplog.text


def test_what_is_held_is_answered_before_the_end(serving: Serving, slow: Model, later: Later, image: bytes) -> None:
    with serving(slow.infer, pace_s=SLOW_S) as model:
        model.execute([later.job(image) for _ in range(BATCH)])
        model.execute([later.job(image) for _ in range(BATCH)])
    assert answered([outcome for _, outcome in later.outcomes]) == 2 * BATCH
