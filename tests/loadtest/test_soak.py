"""The soak's mix of good and bad requests, against small servers."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from bundle.store import Bundle
from loadtest.generator.request_set import RequestSet
from loadtest.generator.spec import BadRequests, GeneratorSpec
from loadtest.lanes.golden_requests import golden_requests
from loadtest.lanes.lane import Lane
from loadtest.lanes.parity_gate import check_parity
from loadtest.load import ClosedLoop, Load
from loadtest.overhead.running import free_port
from loadtest.overhead.soak import SoakResult, soak
from tests.loadtest.lab import lane

ROOT = Path(__file__).parents[2]


@contextmanager
def small_server(bundle: Bundle, *flaw: str) -> Iterator[tuple[Lane, int]]:
    """Start a small server; yields its lane and its pid."""
    port = free_port()
    command = [sys.executable, "-m", "tests.loadtest.small_server", str(bundle.path), str(port), *flaw]
    with subprocess.Popen(command, cwd=ROOT) as process:
        server = lane(url=f"http://127.0.0.1:{port}")
        try:
            deadline = time.monotonic() + 30
            while any("Connect" in fault for fault in check_parity(server, bundle).faults):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield server, process.pid
        finally:
            process.kill()


def test_the_mix_has_the_shares_of_the_bad_requests(digits: Bundle) -> None:
    bad = BadRequests(damaged=0.2, oversized=0.1, aborted=0.1, oversized_bytes=12345)
    golden = golden_requests(lane(), digits)
    mix = RequestSet(lane(), golden, lane().wire(digits.manifest), bad=bad, seed=1)
    kinds = [mix.next().kind for _ in range(2000)]
    assert kinds.count("damaged") / 2000 == pytest.approx(0.2, abs=0.03)
    assert kinds.count("golden") / 2000 == pytest.approx(0.6, abs=0.04)
    again = RequestSet(lane(), golden, lane().wire(digits.manifest), bad=bad, seed=1)
    assert [again.next() for _ in range(50)] == [mix.next() for _ in range(50)]
    oversized = next(request for request in mix.requests if request.kind == "oversized")
    assert b"Content-Length: 12345\r\n" in oversized.message
    images = {one.request.body for one in golden}
    for request in mix.requests:
        body = request.message.partition(b"\r\n\r\n")[2]
        assert (body in images) == (request.kind in ("golden", "aborted"))


def test_without_bad_requests_every_golden_image_is_sent_in_turn(digits: Bundle) -> None:
    golden = golden_requests(lane(), digits)
    plain = RequestSet(lane(), golden, lane().wire(digits.manifest))
    assert [plain.next().golden for _ in golden] == golden


@pytest.mark.parametrize("change", [{"damaged": 0.6, "aborted": 0.6}, {"protocol": "grpc"}])
def test_impossible_mixes_are_refused(change: dict[str, object]) -> None:
    protocol = change.pop("protocol", "http")
    load = Load(scenario="test", loop=ClosedLoop(concurrency=1, duration_s=1))
    bad = BadRequests.model_validate({"damaged": 0.1, **change})
    with pytest.raises(ValidationError):
        GeneratorSpec(lane=lane(protocol=protocol), load=load, bundle=None, timeout_s=1, bad_requests=bad)


def test_a_server_that_refuses_bad_requests_passes(digits: Bundle) -> None:
    seen: list[int] = []
    with small_server(digits) as (server, pid):
        result = soak(server, digits, pid, 600, 4, on_load=seen.append)
    assert result.problems == []
    assert result.requests >= 600
    assert seen[-1] == result.requests
    assert set(result.statuses) == {("golden", 200), ("damaged", 422), ("oversized", 413), ("aborted", 0)}
    assert result.statuses["golden", 200] > 0.7 * result.requests
    assert result.memory_mib


@pytest.mark.parametrize(
    ("flaw", "problem"),
    [
        ("accepts-damaged", "damaged request: HTTP 200 instead of 400 or 415 or 422"),
        ("wrong-answers", "wrong answer: "),
    ],
)
def test_a_server_that_does_not_fails(flaw: str, problem: str, digits: Bundle) -> None:
    with small_server(digits, flaw) as (server, pid):
        result = soak(server, digits, pid, 100, 2)
    assert any(problem in found for found in result.problems)


def test_a_replaced_worker_and_growing_memory_are_problems(digits: Bundle) -> None:
    with small_server(digits) as (server, _):
        child = subprocess.Popen(["sleep", "0.4"])  # a child of this process: stands in for a worker that ends
        waiter = threading.Thread(target=child.wait)
        waiter.start()
        result = soak(server, digits, os.getpid(), 400, 2)
        waiter.join()
    assert "a worker process was replaced" in result.problems
    grown = SoakResult(memory_mib=[100, 101, 100, 120, 110])
    assert (grown.early_mib, grown.late_mib) == (100, 120)
