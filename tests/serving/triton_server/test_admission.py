"""The bound on what waits in Triton: its table of places, in simulated time where time matters."""

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundle.errors import DeadlineExceededError
from serving.triton_server.admission import Admission, Ticket, count_waiting, free_all

S = 1_000_000_000
TIMEOUT_S = 10
PLACES = 264


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> int:
        return round(self.now_s * S)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def door(tmp_path: Path, clock: Clock) -> Admission:
    return Admission(tmp_path / "table", PLACES, TIMEOUT_S, clock)


def taken(tickets: list[Ticket] | None) -> list[Ticket]:
    assert tickets is not None
    return tickets


def test_a_bound_that_processes_share_and_whose_places_come_back(tmp_path: Path) -> None:
    door, other_process = (Admission(tmp_path / "table", 2, timeout_s=60) for _ in range(2))
    first, second = taken(door.take()), taken(other_process.take())
    assert first != second
    assert (door.take(), other_process.take()) == (None, None)
    other_process.release(first)
    assert other_process.waiting == count_waiting(tmp_path / "table", 60) == 1
    assert door.take() is not None
    assert door.take() is None


def test_a_request_gets_all_its_places_or_none(door: Admission) -> None:
    first = taken(door.take(PLACES - 1))
    assert len(set(first)) == PLACES - 1
    assert door.take(2) is None
    assert door.waiting == PLACES - 1
    assert door.take() is not None
    assert door.take() is None


def test_what_still_waits_keeps_its_place_however_old_it_is(door: Admission, clock: Clock) -> None:
    """Else a slow server would take more and more."""
    old, younger = taken(door.take(PLACES)), 0
    for place in old[:-1]:  # one comes back every 50 ms, in order: the last after 13 s
        clock.now_s += 0.05
        door.release([place])
        younger += door.take() is not None
        assert door.waiting <= PLACES
    assert door.waiting == 1 + younger
    with pytest.raises(DeadlineExceededError):
        door.check_in_time(old[-1:])


def test_images_that_are_lost_do_not_keep_others_waiting_beyond_their_time(door: Admission, clock: Clock) -> None:
    """A client that is gone, with all that it had asked for."""
    for _ in range(300):  # the server needs 30 ms for each
        here = taken(door.take())
        clock.now_s += 0.03
        door.release(here)
    while door.take():
        clock.now_s += 0.001
    assert door.waiting < PLACES
    clock.now_s += TIMEOUT_S
    assert door.take() is not None


def test_a_lost_place_is_free_when_a_image_came_back_that_was_taken_a_timeout_later(
    door: Admission, clock: Clock
) -> None:
    lost = taken(door.take())
    for _ in range(3):
        clock.now_s += TIMEOUT_S / 2
        younger = taken(door.take())
        clock.now_s += 0.01
        door.release(younger)
    taken(door.take(PLACES))
    clock.now_s += 0.01
    door.release(lost)  # it comes after all: not its place any more
    assert door.waiting == PLACES


def test_what_overtook_the_others_proves_nothing(door: Admission, clock: Clock) -> None:
    waits = taken(door.take())
    for _ in range(3):
        clock.now_s += TIMEOUT_S / 2
        door.withdraw(taken(door.take()))  # a broken image, which preprocess refused
    assert door.waiting == 1
    assert door.take(PLACES) is None
    door.release(waits)
    assert door.waiting == 0


def test_if_nothing_comes_back_all_places_are_free_after_three_timeouts(door: Admission, clock: Clock) -> None:
    taken(door.take(PLACES))
    clock.now_s += 3 * TIMEOUT_S - 0.01
    assert door.take() is None
    clock.now_s += 0.02
    assert len(taken(door.take(PLACES))) == PLACES


def test_what_is_certainly_lost_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "table"
    assert count_waiting(path, 60) == 0
    taken(Admission(path, 4, 0.01).take(2))
    time.sleep(0.04)
    assert count_waiting(path, 60) == 2
    assert count_waiting(path, 0.01) == 0


def test_all_places_can_be_freed_at_once(door: Admission, clock: Clock, tmp_path: Path) -> None:
    old = taken(door.take(PLACES))
    free_all(tmp_path / "table")
    assert door.waiting == 0
    clock.now_s += 0.01
    new = taken(door.take(PLACES))
    door.release(old)
    assert door.waiting == PLACES
    door.release(new)
    assert door.waiting == 0
    free_all(tmp_path / "no table")


def test_time_without_work_does_not_count(door: Admission, clock: Clock) -> None:
    for _ in range(200):
        one = taken(door.take())
        clock.now_s += 0.01
        door.release(one)
        clock.now_s += 60
    assert len(taken(door.take(PLACES - 1))) == PLACES - 1
    assert door.take() is not None


def test_images_that_come_back_at_once_share_the_time(door: Admission, clock: Clock) -> None:
    """8 in 200 ms: 200 images would wait for 5 s, half of the timeout. Each for itself: 25."""
    for _ in range(50):
        batch = [taken(door.take())[0] for _ in range(8)]
        clock.now_s += 0.2
        for ticket in batch:
            door.release([ticket])
    held = 0
    while door.take() is not None:
        held += 1
    assert 180 < held < 240


def test_one_request_is_taken_whole_when_nothing_waits(door: Admission, clock: Clock) -> None:
    """However slow the server seems to be: else nothing could show that it is not."""
    for _ in range(100):
        one = taken(door.take())
        clock.now_s += 9
        door.release(one)
    first = taken(door.take(8))
    assert door.take() is None
    door.release(first)


@dataclass
class Simulated:
    """What a simulated server did."""

    in_time: Counter[int]  # by 20 s
    late: int
    refused: int
    most: int


@pytest.fixture
def simulate(door: Admission, clock: Clock) -> Callable[..., Simulated]:
    def run(per_s: float, offered_per_s: float, batch: int, jitter: float, seconds: int = 120) -> Simulated:
        """A queue and one worker, which takes up to `batch` images at once: a full batch keeps it busy for `batch / per_s`
        seconds, give or take `jitter` of that, and a smaller one for less.
        """
        chance, done = random.Random(0), Simulated(Counter(), 0, 0, 0)
        start, busy = clock.now_s, False
        queue: list[Ticket] = []
        events: list[tuple[float, list[Ticket]]] = [
            (start + n / offered_per_s, []) for n in range(int(offered_per_s * seconds))
        ]
        while events and events[0][0] < start + seconds:
            clock.now_s, batched = heapq.heappop(events)
            if batched:
                busy = False
                for ticket in batched:
                    try:
                        door.check_in_time([ticket])
                        done.in_time[int(clock.now_s - start) // 20] += 1
                    except DeadlineExceededError:
                        done.late += 1
                    door.release([ticket])
            elif tickets := door.take():
                queue += tickets
                done.most = max(done.most, door.waiting)
            else:
                done.refused += 1
            if queue and not busy:
                now, queue = queue[:batch], queue[batch:]
                needs_s = (0.3 * batch + 0.7 * len(now)) / per_s * chance.uniform(1 - jitter, 1 + jitter)
                heapq.heappush(events, (clock.now_s + needs_s, now))
                busy = True
        return done

    return run


@pytest.mark.parametrize(("batch", "jitter"), [(1, 0.0), (1, 0.9), (8, 0.4), (32, 0.4)])
def test_a_server_that_is_too_slow_for_what_comes_goes_on_answering_in_time(
    simulate: Callable[..., Simulated], batch: int, jitter: float
) -> None:
    done = simulate(15, 40, batch, jitter)
    assert done.most <= PLACES
    assert done.refused > 0
    assert all(done.in_time[window] >= 0.8 * 15 * 20 for window in range(1, 6)), done


def test_a_fast_server_is_bound_by_its_places_only(simulate: Callable[..., Simulated], door: Admission) -> None:
    done = simulate(500, 450, batch=8, jitter=0.4, seconds=20)
    assert (done.late, done.refused) == (0, 0)
    held = door.waiting
    while door.take() is not None:
        held += 1
    assert held == PLACES
