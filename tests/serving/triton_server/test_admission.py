"""The bound on what waits in an instance of Triton's image model, in simulated time."""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from serving.triton_server.admission import Admission

TIMEOUT_S = 10
SLOTS = 264


@pytest.fixture
def admission() -> Admission:
    return Admission(SLOTS, TIMEOUT_S, max_batch_size=8)


def test_a_request_gets_a_place_for_all_its_images_or_none(admission: Admission) -> None:
    assert admission.admits(SLOTS - 1, 1)
    assert not admission.admits(SLOTS - 1, 2)
    assert not admission.admits(SLOTS, 1)


def test_a_request_that_would_wait_too_long_is_refused(admission: Admission) -> None:
    for _ in range(100):
        admission.observe(8, 0.2)  # 200 images take 5 s, half of the timeout
    assert admission.admits(199, 1)
    assert not admission.admits(200, 1)


def test_one_request_is_admitted_when_nothing_waits(admission: Admission) -> None:
    """However slow the model seems to be: else nothing could show that it is not."""
    for _ in range(100):
        admission.observe(1, 9.0)
    assert admission.admits(0, 8)
    assert not admission.admits(1, 1)


def test_the_pace_is_the_mean_of_the_first_images_and_then_follows_slowly(admission: Admission) -> None:
    admission.observe(4, 0.4)
    admission.observe(4, 0.8)
    assert admission.seconds_per_image == pytest.approx(0.15)
    for _ in range(8):
        admission.observe(8, 0.8)
    before = admission.seconds_per_image
    admission.observe(1, 6.4)
    assert admission.seconds_per_image == pytest.approx(before + (6.4 - before) / 64)


def test_a_model_is_fast_if_a_full_batch_takes_some_milliseconds(admission: Admission) -> None:
    assert admission.is_fast
    for seconds, is_fast in ((0.004, True), (0.011, False), (0.009, False), (0.007, True), (0.009, True)):
        for _ in range(200):
            admission.observe(8, seconds)
        assert admission.is_fast is is_fast, seconds


@dataclass
class Simulated:
    """What a simulated server did."""

    in_time: Counter[int]  # by 20 s
    late: int
    refused: int
    most: int


@pytest.fixture
def simulate(admission: Admission) -> Callable[..., Simulated]:
    def run(per_s: float, offered_per_s: float, batch: int, jitter: float, seconds: int = 120) -> Simulated:
        """A queue and one worker, which takes up to `batch` images at once: a full batch keeps it busy for `batch / per_s`
        seconds, give or take `jitter` of that, and a smaller one for less.
        """
        chance, done = random.Random(0), Simulated(Counter(), 0, 0, 0)
        queue: deque[float] = deque()  # times of arrival
        computed: list[float] = []
        took_s = 0.0
        # The batch's end (1) comes before an arrival (0) at the same time.
        events = [(number / offered_per_s, 0) for number in range(int(offered_per_s * seconds))]
        heapq.heapify(events)
        while events and events[0][0] < seconds:
            now, ends = heapq.heappop(events)
            if ends:
                admission.observe(len(computed), took_s)
                late = sum(now - arrived > TIMEOUT_S for arrived in computed)
                done.late += late
                done.in_time[int(now) // 20] += len(computed) - late
                computed = []
            elif admission.admits(len(queue) + len(computed), 1):
                queue.append(now)
                done.most = max(done.most, len(queue) + len(computed))
            else:
                done.refused += 1
            if queue and not computed:
                computed = [queue.popleft() for _ in range(min(batch, len(queue)))]
                took_s = (0.3 * batch + 0.7 * len(computed)) / per_s * chance.uniform(1 - jitter, 1 + jitter)
                heapq.heappush(events, (now + took_s, 1))
        return done

    return run


@pytest.mark.parametrize(("batch", "jitter"), [(1, 0.0), (1, 0.9), (8, 0.4), (32, 0.4)])
def test_a_server_that_is_too_slow_for_its_load_answers_in_time(
    simulate: Callable[..., Simulated], batch: int, jitter: float
) -> None:
    done = simulate(15, 40, batch, jitter)
    assert done.most <= SLOTS
    assert done.refused > 0
    assert all(done.in_time[window] >= 0.8 * 15 * 20 for window in range(1, 6)), done


def test_a_fast_server_is_bound_by_its_slots_only(simulate: Callable[..., Simulated], admission: Admission) -> None:
    done = simulate(500, 450, batch=8, jitter=0.4, seconds=20)
    assert (done.late, done.refused) == (0, 0)
    assert admission.admits(SLOTS - 1, 1)
