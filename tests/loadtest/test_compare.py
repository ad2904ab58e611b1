"""Comparing two benchmarks: no false alarm, and a planted slowdown is found; with simulated service times."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from loadtest.analysis.compare import compare
from loadtest.benchmark.result import Result, Run, write_result
from loadtest.errors import ResultError
from loadtest.lanes.ceiling import Ceiling, CeilingSpec
from loadtest.load import ClosedLoop, Load
from tests.loadtest.lab import parity, recording, result
from trident.console.bench import compare_results

ROUNDS, REQUESTS = 5, 700
LANES = ("fastapi", "torchserve", "triton")
SPEC = CeilingSpec(runtime="onnxruntime", precision="fp32", threads=1)


def benchmark(
    seed: int, slower: float = 1.0, machine: float = 1.0, ceilings: bool = False, slow_lane: str = "triton"
) -> Result:
    """Three lanes alone and with eight at once. Service times are lognormal; every run has a noise of 2 % of its own,
    and one lane may be `slower`.
    """
    draw = np.random.default_rng(seed)
    runs = []
    for name, service_s in zip(LANES, (0.001, 0.003, 0.002), strict=True):
        for round_ in range(ROUNDS):
            for concurrency in (1, 8):
                factor = draw.normal(1, 0.02) * machine * (slower if name == slow_lane else 1)
                latencies = draw.lognormal(0, 0.3, REQUESTS) * service_s * factor * concurrency
                seconds = float(latencies.sum()) / concurrency
                load = Load(scenario="sweep", loop=ClosedLoop(concurrency=concurrency, duration_s=1))
                recorded = recording(latencies.tolist(), seconds).model_copy(update={"completed": REQUESTS})
                runs.append(Run(lane=name, load=load, round=round_, started=datetime.now(UTC), recording=recorded))
    known = tuple(
        Ceiling(spec=SPEC, round=round_, single=1000 / machine * draw.normal(1, 0.01), batched=1)
        for round_ in range(ROUNDS)
    )
    return result(
        lanes=tuple(parity(name) for name in LANES),
        runs=tuple(runs),
        ceilings=known if ceilings else (),
        ceiling_specs=dict.fromkeys(LANES, SPEC) if ceilings else {},
    )


REPEATS = [2, pytest.param(20, marks=pytest.mark.slow)]


@pytest.mark.parametrize("repeats", REPEATS)
def test_two_benchmarks_of_the_same_are_the_same(repeats: int) -> None:
    alarms = [seed for seed in range(repeats) if not compare(benchmark(2 * seed), benchmark(2 * seed + 1)).passed]
    assert len(alarms) <= repeats // 20, alarms


@pytest.mark.parametrize("repeats", REPEATS)
def test_a_slowdown_of_a_tenth_is_found(repeats: int) -> None:
    found = [compare(benchmark(2 * seed), benchmark(2 * seed + 1, slower=1.1)) for seed in range(repeats)]
    right = [one for one in found if "triton" in {difference.lane for difference in one.slower}]
    assert len(right) >= repeats - repeats // 20


def test_a_machine_that_became_slower_is_not_a_slower_lane() -> None:
    same = [
        compare(benchmark(2 * s, ceilings=True), benchmark(2 * s + 1, machine=1.3, ceilings=True)) for s in range(2)
    ]
    assert all(one.passed for one in same)
    assert same[0].machine["onnxruntime"] == pytest.approx(1 / 1.3, rel=0.03)
    worse = compare(benchmark(0, ceilings=True), benchmark(1, slower=1.25, machine=1.3, ceilings=True))
    assert {difference.lane for difference in worse.slower} == {"triton"}


def test_a_faster_lane_passes_and_a_small_difference_is_none() -> None:
    faster = compare(benchmark(0), benchmark(1, slower=0.8))
    assert faster.passed
    assert any(difference.change == "faster" for difference in faster.differences)
    assert compare(benchmark(0), benchmark(1, slower=1.15), tolerance=0.3).passed


def test_a_lane_that_is_gone_or_wrong_does_not_pass() -> None:
    after = benchmark(1)
    wrong = after.model_copy(update={"lanes": (*after.lanes[:2], parity("triton", "00.png: wrong"))})
    compared = compare(benchmark(0), wrong)
    assert compared.missing == ("triton",)
    assert not compared.passed


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ResultError, match="in common"):
        compare(benchmark(0), result(runs=()))


def test_a_comparison_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(benchmark(0), tmp_path / "a")
    write_result(benchmark(1, slower=1.2), tmp_path / "b")
    assert not compare_results(tmp_path / "a", tmp_path / "b", 0.03, None)
    assert "triton became slower" in capsys.readouterr().out
    html = (tmp_path / "b" / "comparison.html").read_text()
    assert "triton became slower" in html
    assert "<svg" in html
    assert "<script" not in html
