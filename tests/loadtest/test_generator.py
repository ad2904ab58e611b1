"""The load generator against small servers: it measures what happens, keeps to its schedule, and says when it cannot."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.postprocess import answer
from bundle.store import Bundle
from loadtest.benchmark.calibration import calibrate
from loadtest.benchmark.result import Result
from loadtest.benchmark.rounds import run_benchmark
from loadtest.errors import GeneratorError
from loadtest.generator.arrivals import schedule
from loadtest.generator.client import Generator
from loadtest.generator.fake_server import Behaviour, fake_server
from loadtest.generator.requests_log import Requests
from loadtest.generator.spec import GeneratorSpec
from loadtest.lanes.lane import Lane
from loadtest.lanes.lineup import Lineup
from loadtest.lanes.parity_gate import check_parity
from loadtest.load import ClosedLoop, Load, Loop, OpenLoop, Phase, WarmUp
from loadtest.settings import read_settings
from tests.loadtest.lab import lane

serial = pytest.mark.serial
NO_WARM_UP = WarmUp(min_s=0, max_s=0)


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    with Generator() as generator:
        yield generator


def spec(sent_to: Lane, loop: Loop, **more: Any) -> GeneratorSpec:
    content = {"bundle": None, "timeout_s": 5, "warm_up": NO_WARM_UP} | more
    return GeneratorSpec(lane=sent_to, load=Load(scenario="test", loop=loop), **content)


# --- arrivals


def test_poisson_arrivals_are_poisson() -> None:
    at = schedule(OpenLoop.steady(200, 100), seed=1)
    assert len(at) == pytest.approx(20_000, rel=0.03)
    assert np.all(np.diff(at) >= 0)
    gaps = np.diff(at)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)  # an exponential's deviation is its mean
    counts = np.bincount(at.astype(int), minlength=100)
    assert counts.var() == pytest.approx(counts.mean(), rel=0.4)


def test_the_same_seed_gives_the_same_arrivals_and_phases_follow_each_other() -> None:
    loop = OpenLoop(phases=(Phase(rate=100, duration_s=2), Phase(rate=1000, duration_s=1)))
    at = schedule(loop, seed=3)
    assert np.array_equal(at, schedule(loop, seed=3))
    assert not np.array_equal(at[:50], schedule(loop, seed=4)[:50])
    assert (at < 2).sum() == pytest.approx(200, rel=0.3)
    assert (at >= 2).sum() == pytest.approx(1000, rel=0.2)
    constant = schedule(OpenLoop.steady(50, 2, "constant"), seed=0)
    assert np.allclose(np.diff(constant), 0.02)
    assert len(constant) == pytest.approx(100, abs=1)
    assert len(schedule(OpenLoop.steady(1000, 10), seed=0, share=0.25)) == pytest.approx(2500, rel=0.1)


# --- against a server of http.server


def test_connections_are_kept(digits: Bundle, generator: Generator) -> None:
    """As many as are at once, not one for each request; a server that says `Connection: close` gets a new one."""
    for keeps in (True, False):
        with keeping_server(keeps) as (url, connections):
            measured = generator.run(spec(lane(url=url), ClosedLoop(concurrency=3, duration_s=0.5), bundle=digits.path))
        requests = measured.answered + measured.failed
        assert requests > 20
        assert len(connections) == 3 if keeps else len(connections) >= requests


@contextmanager
def keeping_server(keeps: bool) -> Iterator[tuple[str, list[Any]]]:
    """Answers at once; its url, and the addresses that connected to it."""
    connections: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16

        def setup(self) -> None:
            connections.append(self.client_address)
            super().setup()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            if not keeps:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", connections
    server.shutdown()
    server.server_close()


@pytest.fixture
def slow_server(digits: Bundle) -> Iterator[tuple[str, list[float]]]:
    """Answers every image rightly after 20 ms, but every tenth with 500. Notes when requests came. After every seventh
    it is about to close the connection: the next request on it is not answered.
    """
    examples = {example.data: example for example in digits.golden_examples()}
    came: list[float] = []
    numbers = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16  # headers and body in one packet, else they wait for each other (Nagle)
        last = False

        def do_POST(self) -> None:
            example = examples[self.rfile.read(int(self.headers["content-length"]))]
            if self.last:
                self.close_connection = True
                return
            came.append(time.monotonic())
            number = next(numbers)
            time.sleep(0.02)
            body = json.dumps(answer(example.expected.probabilities, "digits", 1, digits.manifest.labels, 5)).encode()
            self.send_response(500 if number % 10 == 0 else 200)
            self.send_header("Server-Timing", "queue;dur=1, inference;dur=20")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (body[:10], body[10:], b""):
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.last = number % 7 == 0

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()


@serial
@pytest.mark.parametrize("loop", [ClosedLoop(concurrency=3, duration_s=1.5), OpenLoop.steady(60, 1.5)])
def test_it_measures_what_happens(
    loop: Loop, slow_server: tuple[str, list[float]], digits: Bundle, generator: Generator, tmp_path: Path
) -> None:
    """Chunked answers, connections that the server closes in between, errors: all of it is HTTP."""
    url, came = slow_server
    file = tmp_path / "rows.npz"
    measured = generator.run(spec(lane(url=url), loop, bundle=digits.path, requests_file=file))
    total = measured.answered + measured.failed
    assert measured.seconds == pytest.approx(1.5)
    assert 50 < total <= 3 * 1.6 / 0.02
    assert total <= len(came) <= total + 4
    assert measured.failed == pytest.approx(total / 10, abs=5)
    assert all(error.startswith("HTTP 500") for error in measured.errors)
    assert measured.percentile_ms(1) >= 20
    assert measured.stages_s == pytest.approx({"queue": 0.001, "inference": 0.02})
    rows = Requests.load(file).rows
    assert len(rows) == total
    assert np.all(rows["scheduled_ns"] <= rows["sent_ns"])
    assert np.all(rows["sent_ns"] < rows["first_byte_ns"])
    assert np.all(rows["first_byte_ns"] <= rows["done_ns"])
    assert set(rows["status"].tolist()) == {200, 500}
    assert sum(measured.timeline.scheduled) == total
    assert sum(measured.timeline.failed) == measured.failed


def test_an_address_without_a_server_gives_errors(digits: Bundle, generator: Generator) -> None:
    measured = generator.run(spec(lane(), ClosedLoop(concurrency=1, duration_s=0.3), bundle=digits.path))
    assert measured.answered == 0
    assert measured.failed > 0
    assert any("refused" in error for error in measured.errors)


def test_a_generator_that_fails_says_why(digits: Bundle) -> None:
    with Generator() as generator, pytest.raises(GeneratorError, match="no-bundle"):
        generator.run(spec(lane(), ClosedLoop(concurrency=1, duration_s=0.3), bundle=Path("no-bundle")))


def test_a_lane_with_wrong_answers_is_not_timed(
    slow_server: tuple[str, list[float]], other_weights: Bundle, digits: Bundle
) -> None:
    url, came = slow_server
    measured = run_benchmark(
        Lineup((lane(url=url),), digits), read_settings(rounds=1, duration_s=0.2, initial_warmup_s=0)
    )
    assert measured.runs == ()
    assert "classes instead of 10" in measured.lanes[0].faults[0]
    assert 0 < len(came) <= len(digits.golden_inputs())  # the gate, and nothing else


# --- against fake servers


def alone(lanes: tuple[Lane, ...], duration_s: float) -> Result:
    """One round of single-stream, and nothing else."""
    only: dict[str, Any] = {
        "rounds": 1,
        "warmup_s": 0.1,
        "warmup_max_s": 0.1,
        "calibration_s": 0,
        "initial_warmup_s": 0,
    }
    return run_benchmark(Lineup(lanes, None), read_settings(scenario=["single-stream"], duration_s=duration_s, **only))


def test_several_processes_share_a_run(generator: Generator) -> None:
    with fake_server(Behaviour(service="deterministic", mean_s=0.002)) as fake:
        open_ = generator.run(spec(fake, OpenLoop.steady(100, 1.5), processes=2, warm_up=WarmUp(min_s=0.2, max_s=0.5)))
        closed = generator.run(spec(fake, ClosedLoop(concurrency=4, duration_s=1), processes=2))
    assert open_.answered == pytest.approx(150, rel=0.35)
    assert open_.failed == 0
    assert closed.answered > 50
    assert closed.percentile_ms(50) > 4 * 2 * 0.7  # four share one server of 2 ms


@serial
def test_an_arrival_without_a_connection_waits_and_that_counts(generator: Generator) -> None:
    """50 requests at once for a server of 10 ms, over two connections: the last one waits for half a second."""
    with fake_server(Behaviour(service="deterministic", mean_s=0.01)) as fake:
        measured = generator.run(spec(fake, OpenLoop.steady(500, 0.1, "constant"), max_in_flight=2))
    assert measured.answered == pytest.approx(50, abs=1)
    assert measured.generator.waited_for_connection >= 30
    assert measured.max_latency_s > 0.38
    assert measured.percentile_ms(50) > 150


@serial
def test_what_was_scheduled_in_time_counts_even_if_it_is_answered_late(generator: Generator) -> None:
    """A server at three times its capacity: all requests are counted, with the waits they had."""
    with fake_server(Behaviour(service="deterministic", mean_s=0.01)) as fake:
        measured = generator.run(spec(fake, OpenLoop.steady(300, 0.5, "constant")))
    assert measured.answered == pytest.approx(150, abs=1)
    assert measured.max_latency_s == pytest.approx(1.0, rel=0.15)  # 150 x 10 ms - 0.5 s
    assert measured.completed < 60


@serial
def test_a_warm_up_ends_when_latency_is_stable(generator: Generator) -> None:
    with fake_server(Behaviour(service="deterministic", mean_s=0.01)) as fake:
        loop = ClosedLoop(concurrency=1, duration_s=0.2)
        steady = generator.run(spec(fake, loop, warm_up=WarmUp(min_s=0.3, max_s=20, tolerance=1.0)))
        never = generator.run(spec(fake, loop, warm_up=WarmUp(min_s=0.3, max_s=0.6, tolerance=1e-9)))
    assert steady.warm_up.stable
    assert 0.3 <= steady.warm_up.seconds < 10
    assert not never.warm_up.stable
    assert never.warm_up.seconds == pytest.approx(0.6, abs=0.3)


def test_fast_but_wrong_is_refused_and_wrong_in_the_middle_invalidates() -> None:
    with fake_server(Behaviour(wrong_after=0)) as liar, fake_server(Behaviour(wrong_after=300)) as turncoat:
        lanes = (liar.model_copy(update={"name": "liar"}), turncoat.model_copy(update={"name": "turncoat"}))
        measured = alone(lanes, 1.5)
    assert [bool(lane.faults) for lane in measured.lanes] == [True, False]
    assert "top-1 class 1, golden 0" in measured.lanes[0].faults[0]
    (run,) = measured.runs
    assert run.lane == "turncoat"
    assert "answers were wrong" in str(run.invalid_reason)
    assert not measured.valid_runs
    assert not measured.sound


@serial
def test_servers_that_are_not_under_load_are_seen_to_be_idle() -> None:
    with fake_server(Behaviour()) as one, fake_server(Behaviour()) as two:
        lanes = (one.model_copy(update={"name": "one"}), two.model_copy(update={"name": "two"}))
        measured = alone(lanes, 0.6)
    for run in measured.runs:
        assert run.resources is not None
        (idle,) = run.resources.idle_cores.values()
        assert run.resources.cores > 10 * idle
        assert run.resources.memory_mib > 5


def test_calibration_says_what_the_generator_costs(generator: Generator) -> None:
    found = calibrate(generator, 0.5, (), ())
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.requests_per_s > 100
    assert 0 < found.cpu_us_per_request < 10_000


def test_a_target_of_ones_own_goes_through_the_gate(slow_server: tuple[str, list[float]], digits: Bundle) -> None:
    url, _ = slow_server
    mine = lane("mine", url, dialect="image", server="third party", path="/anything")
    found = check_parity(mine, digits)
    assert found.golden_inputs == len(digits.golden_inputs())
    assert all("HTTP 500" in fault for fault in found.faults)  # every tenth; the others are right
    assert 0 < len(found.faults) < 4
