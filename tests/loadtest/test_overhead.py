"""The comparison with peers: contestants, turns, figures; with small servers instead of the peers."""

import os
import sys
from contextlib import ExitStack
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from bundle.store import Bundle
from loadtest.errors import LoadtestError
from loadtest.generator.client import Generator
from loadtest.generator.wrk import ToolFigures, wrk_is_installed
from loadtest.lanes.ceiling import CeilingRates
from loadtest.lanes.lane import Lane
from loadtest.overhead.contestants import Contestant, ContestantSettings, contestants
from loadtest.overhead.running import RunningContestant, running
from loadtest.overhead.table import show_turns
from loadtest.overhead.turns import GENERATOR, WRK, Turn, Turns, at_constant_rate, generator_tool, take_turns, wrk_tool
from tests.loadtest.lab import lane

CORE = min(os.sched_getaffinity(0))
LOAD_CORE = max(os.sched_getaffinity(0))
CEILING = CeilingRates(single=1000, batched=2000)


def small(name: str, bundle: Bundle, *flaw: str) -> Contestant:
    """A small server as a contestant."""
    command = [sys.executable, "-m", "tests.loadtest.small_server", str(bundle.path)]
    here = lane(name, dialect="image", path="/predict", server=name)
    return Contestant(name, lambda port: [*command, str(port), *flaw], here)


def figures(requests_per_s: float, invalid_reason: str | None = None) -> ToolFigures:
    return ToolFigures(0.001, 0.002, requests_per_s, invalid_reason=invalid_reason)


def is_paused(server: RunningContestant) -> bool:
    return psutil.Process(server.process.pid).status() == psutil.STATUS_STOPPED


def test_every_server_takes_part_with_every_setting(digits: Bundle) -> None:
    names = [one.name for one in contestants(digits, Path("python"))]
    assert names == ["trident", "plain FastAPI", "mosec", "LitServe", "BentoML"]
    assert [one.name for one in contestants(digits, None)] == ["trident", "plain FastAPI"]
    variants = contestants(digits, None, ["trident"], [ContestantSettings(8), ContestantSettings(32)])
    assert [one.name for one in variants] == ["trident batch 8", "trident batch 32"]
    assert [one.environment(1)["TRIDENT_MAX_BATCH_SIZE"] for one in variants] == ["8", "32"]
    for one in contestants(digits, Path("python")):
        assert "1234" in [*one.command(1234), *one.environment(1234).values()]
        assert one.lane.wire(digits.manifest).request(b"image").path.startswith("/predict")


def test_only_the_measured_server_runs_and_each_has_its_turn(digits: Bundle) -> None:
    measured: list[tuple[str, int]] = []
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(small("one", digits), digits, CORE)),
            stack.enter_context(running(small("two", digits, "slow-start"), digits, CORE)),
        ]
        assert all(is_paused(server) for server in servers)
        assert all(psutil.Process(server.process.pid).cpu_affinity() == [CORE] for server in servers)

        def tool(lane: Lane, concurrency: int) -> ToolFigures:
            assert [server.lane.name for server in servers if not is_paused(server)] == [lane.name]
            measured.append((lane.name, concurrency))
            return figures(500)

        ceilings = iter(CeilingRates(single, 0) for single in range(1000, 10_000, 1000))
        done = take_turns(servers, (1, 4), {GENERATOR: tool}, lambda: next(ceilings), 2, seed=0)
        with Generator() as generator:
            real = generator_tool(generator, digits, 0.3, LOAD_CORE)
            with servers[0].resumed():
                found = real(servers[0].lane, 2)
            paced = at_constant_rate(servers[0], generator, digits, 50, 1, LOAD_CORE)
        assert all(is_paused(server) for server in servers)
    assert sorted(measured) == sorted([("one", 1), ("one", 4), ("two", 1), ("two", 4)] * 2)
    assert [turn.ceiling for turn in done.turns] == [1500 + 1000 * number for number in range(8)]
    assert done.turns[0].share == pytest.approx(500 / 1500)
    assert len(done.of("one", 4, GENERATOR)) == 2
    assert found.requests_per_s > 50
    assert 0 < found.p50_s <= found.p99_s
    assert paced.offered_per_s == pytest.approx(50, rel=0.1)
    assert not any(psutil.pid_exists(server.process.pid) for server in servers)


def test_a_server_with_wrong_answers_or_that_ends_does_not_take_part(digits: Bundle) -> None:
    with (
        pytest.raises(LoadtestError, match="one did not start: golden/"),
        running(small("one", digits, "wrong-answers"), digits, CORE, timeout_s=3),
    ):
        pass
    ends = Contestant("two", lambda _: [sys.executable, "-c", "raise SystemExit('no model')"], lane("fastapi"))
    with pytest.raises(LoadtestError, match="code 1\nno model"), running(ends, digits, CORE):
        pass


def test_failed_requests_end_the_comparison(digits: Bundle) -> None:
    with running(small("one", digits), digits, CORE) as server:
        broken = {WRK: lambda *_: ToolFigures(0.1, 0.1, 10, failed=3)}
        with pytest.raises(LoadtestError, match="one at concurrency 1, by wrk: 3 requests failed"):
            take_turns([server], [1], broken, lambda: CEILING, 1, seed=0)


@pytest.mark.skipif(not wrk_is_installed(), reason="wrk is not installed (apt install wrk)")
def test_wrk_sends_the_golden_images(digits: Bundle) -> None:
    with running(small("one", digits), digits, CORE) as server, server.resumed():
        found = wrk_tool(digits, 1, LOAD_CORE)(server.lane, 2)
        wrong_path = server.lane.model_copy(update={"url": f"{server.lane.url}/x"})
        assert wrong_path.url.endswith("/x")
    assert found.requests_per_s > 50
    assert found.failed == 0


def test_the_table_has_medians_ranges_and_the_best_peer() -> None:
    turns = [
        Turn(name, 16, tool, figures(rate * factor), 1000)
        for name, rate in (("trident", 800), ("mosec", 400), ("LitServe", 200))
        for tool in (GENERATOR, WRK)
        for factor in (0.9, 1.0, 1.2)
    ]
    distorted = Turn("LitServe", 16, GENERATOR, figures(5000, "the generator was saturated"), 1000)
    output = StringIO()
    console = Console(file=output, width=130)
    show_turns(console, Turns([*turns, distorted], [CEILING]), ["trident", "mosec", "LitServe"], [GENERATOR, WRK])
    lines = output.getvalue().splitlines()
    (ours,) = [line.split() for line in lines if line.lstrip().startswith("trident ") and "0.80" in line]
    assert ours == ["trident", *(["1.00", "800", "0.80", "0.72,", "0.96"] * 2)]
    assert "trident reaches 2.00 times the share of the best peer, mosec" in lines
    assert "trident reaches 2.00 times the share of the best peer, mosec (wrk)" in lines
    assert "INVALID and excluded: LitServe at concurrency 16: the generator was saturated" in lines
