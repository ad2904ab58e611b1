"""What is asked of the lanes and in which order; scenarios against simulated servers; settings."""

import random
from pathlib import Path
from typing import Any

import pytest

from loadtest.benchmark.rounds import steps
from loadtest.errors import LoadtestError
from loadtest.generator.recording import GeneratorHealth, Recording
from loadtest.load import Load, OpenLoop, Phase
from loadtest.scenarios import PastLoad, ServerScenario, SingleStream, Slo, Spike, Sweep
from loadtest.scenarios.spike import recovery_s
from loadtest.settings import BenchSettings, read_settings
from tests.loadtest.lab import drive, lane, recording, server_with


def test_lanes_are_interleaved_in_an_order_that_the_seed_gives() -> None:
    lanes = [lane("fastapi"), lane("torchserve"), lane("triton")]

    def plan(seed: int) -> list[tuple[str, Load]]:
        shuffled, found = random.Random(seed), []
        for _ in range(6):
            for one, load, tell in steps(Sweep(concurrency=(2, 4)), lanes, {}, shuffled):
                found.append((one.name, load))
                tell(recording([0.001]))
        return found

    orders = set()
    for start in range(0, 6 * 2 * 3, 3):
        group = plan(1)[start : start + 3]
        assert len({load for _, load in group}) == 1  # one load at a time on all lanes
        assert {name for name, _ in group} == {"fastapi", "torchserve", "triton"}
        orders.add(tuple(name for name, _ in group))
    assert len(orders) > 1
    assert plan(1) == plan(1) != plan(2)


def test_slo_finds_the_highest_rate() -> None:
    slo = Slo(slo_ms=50, resolution=0.05)
    done = drive(slo, server_with(400))
    # 0.005 / (1 - r) * 3 * 0.99 = 0.05 at r = 0.70
    assert slo.bracket(done)[0] == pytest.approx(400 * 0.70, rel=0.06)
    assert len(done) < 12
    for load, _ in done[1:]:
        assert isinstance(load.loop, OpenLoop)
        assert load.loop.rate * load.loop.duration_s >= 662 or load.loop.duration_s >= slo.duration_s
    later = drive(slo, server_with(400), [PastLoad(*entry) for entry in done])
    assert not any(load.probe for load, _ in later)
    assert slo.bracket(later)[0] == pytest.approx(400 * 0.70, rel=0.06)


def test_slo_counts_failed_requests_as_late() -> None:
    slo = Slo(slo_ms=50)
    assert slo.held(recording([0.01] * 990, failed=10))
    assert not slo.held(recording([0.01] * 980, failed=20))
    assert slo.held(recording([0.01] * 990 + [0.2] * 10))
    assert not slo.held(recording([0.01] * 980 + [0.2] * 20))
    assert not slo.held(recording([], failed=5))


def test_slo_gives_up_on_a_server_that_never_holds() -> None:
    slo = Slo(slo_ms=1)
    assert slo.bracket(drive(slo, server_with(100)))[0] == 0


def test_slo_searches_below_what_the_generator_cannot_offer() -> None:
    late = GeneratorHealth(cpu=0.2, lag_p50_ms=5, lag_p99_ms=50)

    def answer(load: Load) -> Recording:
        found: Recording = server_with(400)(load)
        offered = isinstance(load.loop, OpenLoop) and load.loop.rate < 200
        return found if offered else found.model_copy(update={"generator": late})

    slo = Slo(slo_ms=50, resolution=0.05)
    assert slo.bracket(drive(slo, answer))[0] == pytest.approx(200, rel=0.06)


def test_slo_gives_up_when_the_generator_is_late_at_every_rate() -> None:
    late = GeneratorHealth(cpu=0.2, lag_p50_ms=5, lag_p99_ms=50)
    done = drive(Slo(slo_ms=50), lambda load: server_with(400)(load).model_copy(update={"generator": late}))
    assert 2 < len(done) < 12
    assert Slo(slo_ms=50).bracket(done)[0] == 0


def test_slo_ends_at_a_wrong_answer() -> None:
    done = drive(Slo(slo_ms=50), lambda load: recording([0.001] * 700, wrong=1))
    assert len(done) == 2
    assert Slo(slo_ms=50).bracket(done)[0] == 0


def test_server_takes_its_shares_of_the_first_rounds_capacity_in_every_round() -> None:
    first = drive(ServerScenario(shares=(0.5, 0.9)), server_with(200))
    assert first[0][0].probe
    assert [getattr(load.loop, "rate", 0) for load, _ in first[1:]] == pytest.approx([100, 180], rel=0.02)
    second = drive(ServerScenario(shares=(0.5, 0.9)), server_with(300), [PastLoad(*entry) for entry in first])
    assert [load for load, _ in second] == [load for load, _ in first[1:]]
    assert [load.loop.label for load, _ in drive(ServerScenario(rates=(7, 9)), server_with(1))] == ["7/s", "9/s"]


def test_recovery_is_counted_from_the_end_of_the_spike() -> None:
    phases = (Phase(rate=100, duration_s=2), Phase(rate=300, duration_s=1), Phase(rate=100, duration_s=3))
    loop = OpenLoop(phases=phases)
    slow_from, slow_until = 200, 450  # requests: 2.0 s to 4.5 s at 100/s
    latencies = [0.5 if slow_from <= i < slow_until else 0.01 for i in range(600)]
    assert recovery_s(loop, recording(latencies, 6.0)) == pytest.approx(1.5, abs=0.11)
    never = [0.5 if slow_from <= i else 0.01 for i in range(600)]
    assert recovery_s(loop, recording(never, 6.0)) is None
    load = drive(Spike(), server_with(100))[-1][0]
    assert isinstance(load.loop, OpenLoop)
    assert [phase.rate for phase in load.loop.phases] == pytest.approx([40, 150, 40], rel=0.02)


# --- settings


def test_flags_go_to_the_scenarios_that_have_them() -> None:
    settings = read_settings(
        scenario=["single-stream", "server"], rates=["50", "100"], duration_s=2, warmup_s=0.5, rounds=None
    )
    assert settings.scenarios == (SingleStream(duration_s=2), ServerScenario(rates=(50, 100), duration_s=2))
    assert settings.warm_up.min_s == 0.5
    assert settings.rounds == 3


def test_a_file_is_a_benchmark_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "bench.toml"
    file.write_text('rounds = 5\n[warm_up]\nmin_s = 2\n[[scenarios]]\nkind = "slo"\nslo_ms = 20\n')
    assert read_settings(file).scenarios == (Slo(slo_ms=20),)
    assert read_settings(file, rounds=1, slo_ms=30) == BenchSettings(
        rounds=1, warm_up=read_settings(file).warm_up, scenarios=(Slo(slo_ms=30),)
    )
    file.write_text("rounds = 0")
    with pytest.raises(LoadtestError, match=r"bench\.toml: rounds"):
        read_settings(file)
    file.write_text("rounds = = 0")
    with pytest.raises(LoadtestError, match="not a benchmark file"):
        read_settings(file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rounds": 0}, "--rounds"),
        ({"scenario": ["marathon"]}, "--scenario"),
        ({"concurrency": ["2", "x"]}, "--concurrency"),
        ({"rates": [5]}, "server, which is not selected"),
        ({"duration_s": -1}, "--duration-s"),
    ],
)
def test_bad_settings_name_their_flag(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadtestError, match=message):
        read_settings(**flags)
