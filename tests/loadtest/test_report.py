"""From runs to a result, its rows and headlines, and the report."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.analysis.estimate import Estimate
from loadtest.analysis.summary import headlines, load_summaries, milliseconds, slo_capacity, with_interval
from loadtest.benchmark.result import latest_result, read_result, write_result
from loadtest.errors import ResultError
from loadtest.generator.recording import GeneratorHealth
from loadtest.lanes.ceiling import Ceiling, CeilingSpec
from loadtest.load import ClosedLoop, OpenLoop, Phase
from loadtest.report import write_report
from loadtest.scenarios import SingleStream, Slo, Sweep
from loadtest.settings import BenchSettings
from tests.loadtest.lab import HEALTHY, parity, recording, resources, result, run


def test_a_result_is_read_as_written(tmp_path: Path) -> None:
    written = result()
    write_result(written, tmp_path / "a")
    assert read_result(tmp_path / "a") == written
    assert latest_result(tmp_path) == tmp_path / "a"
    with pytest.raises(ResultError, match="trident bench"):
        read_result(tmp_path / "none")
    with pytest.raises(ResultError, match="trident bench"):
        latest_result(tmp_path / "none")
    (tmp_path / "a" / "result.json").write_text("{}")
    with pytest.raises(ResultError, match="not a result"):
        read_result(tmp_path / "a")


def test_rows_join_the_rounds() -> None:
    row = next(
        row for row in load_summaries(result()) if (row.lane, row.load.loop.label) == ("triton", "concurrency 4")
    )
    assert row.requests == 2100
    assert row.requests_per_s.value == pytest.approx(700, rel=0.02)  # the last answers come too late
    assert row.p50_s is not None
    assert row.p50_s.value == pytest.approx(0.011, rel=0.01)
    assert row.stages_s == pytest.approx({"decode": 0.0002, "inference": 0.0005})
    assert row.rest_s == pytest.approx(row.mean_s - 0.0007)
    assert row.cpu_ms_per_request == pytest.approx(500 / 700)


def test_headlines() -> None:
    spec = CeilingSpec(runtime="onnxruntime", precision="fp32", threads=1)
    ceilings = tuple(Ceiling(spec=spec, round=round_, single=1400, batched=1000) for round_ in range(3))
    settings = BenchSettings(price_per_hour=3.6)
    content = {"ceiling_specs": {"fastapi": spec}, "ceilings": ceilings, "settings": settings}
    fastapi, triton = headlines(result(**content))
    assert (fastapi.parity, fastapi.errors, fastapi.invalid) == ("16 of 16", 0, 0)
    assert fastapi.of_ceiling is not None
    assert fastapi.of_ceiling.value == pytest.approx(0.5, rel=0.02)
    assert triton.of_ceiling is None
    assert fastapi.cost_per_million == pytest.approx(3.6 / 3600 / 700 * 1e6, rel=0.02)


def test_invalid_runs_are_left_out_and_named() -> None:
    loop = ClosedLoop(concurrency=4, duration_s=1)
    busy = GeneratorHealth(cpu=0.99, lag_p50_ms=1, lag_p99_ms=5)
    distorted = run("fastapi", loop, 3, recording([9.0] * 700, health=busy))
    row = next(row for row in load_summaries(result(runs=(*result().runs, distorted))) if row.load.loop == loop)
    assert row.invalid == 1
    assert row.max_s < 1
    late = GeneratorHealth(cpu=0.5, lag_p50_ms=1, lag_p99_ms=5)
    steady = OpenLoop.steady(700, 1)
    assert "5.0 ms late" in str(run("fastapi", steady, 0, recording([0.01] * 700, health=late)).invalid_reason)
    assert run("fastapi", steady, 0, recording([1.0] * 700, health=late)).invalid_reason is None
    assert "1 of 701 answers were wrong" in str(
        run("fastapi", loop, 0, recording([0.01] * 700, wrong=1)).invalid_reason
    )
    disturbed = resources(idle_cores={"triton": 0.6}, other_cores=0.9)
    shared = run("fastapi", loop, 0, recording([0.01] * 700), resources=disturbed)
    assert "triton used 0.60 cores" in str(shared.invalid_reason)
    assert "other processes of the machine used 0.9 cores" in str(shared.remark)


def test_wrong_in_the_middle_makes_the_result_unsound() -> None:
    wrong = run("fastapi", ClosedLoop(concurrency=4, duration_s=1), 3, recording([0.01] * 700, wrong=3))
    assert result().sound
    assert not result(runs=(*result().runs, wrong)).sound
    assert not result(lanes=(parity("fastapi", "00.png: wrong"),)).sound


def _searched() -> Any:
    """A result with every kind of scenario in it."""
    slo = [
        run(name, OpenLoop.steady(rate, 2), round_, recording([seconds] * 700, 2.0), "slo")
        for name in ("fastapi", "triton")
        for round_ in range(3)
        for rate, seconds in ((300.0, 0.01), (400.0, 0.2))
    ]
    phases = tuple(Phase(rate=rate, duration_s=2) for rate in (100, 300, 100))
    spike = run("fastapi", OpenLoop(phases=phases), 0, recording([0.01] * 600, 6.0), "spike")
    soak = run("triton", OpenLoop.steady(100, 6), 0, recording([0.01] * 600, 6.0), "soak", resources=resources())
    server = run("triton", OpenLoop.steady(100, 6), 0, recording([0.01] * 690, 6.0, failed=10), "server")
    settings = BenchSettings(scenarios=(SingleStream(), Sweep(), Slo(slo_ms=50)))
    return result(runs=(*result().runs, *slo, spike, soak, server), settings=settings)


def test_what_the_generator_could_not_offer_bounds_a_capacity() -> None:
    late = GeneratorHealth(cpu=0.2, lag_p50_ms=5, lag_p99_ms=50)

    def searched(*probes: tuple[float, float, GeneratorHealth]) -> Any:
        """Rate, latency, and how the generator was; the same in three rounds. And a probe of the capacity."""
        runs = [
            run("fastapi", OpenLoop.steady(rate, 2), round_, recording([s] * 700, 2.0, health=health), "slo")
            for round_ in range(3)
            for rate, s, health in probes
        ]
        busy = recording([0.01] * 700, health=GeneratorHealth(cpu=0.99, lag_p50_ms=1, lag_p99_ms=5))
        capacity = run("fastapi", ClosedLoop(concurrency=8, duration_s=1), 0, busy, "slo", probe=True)
        settings = BenchSettings(scenarios=(Slo(slo_ms=50),))
        return slo_capacity(result(runs=(capacity, *runs), settings=settings), "fastapi")

    known = searched((300, 0.01, HEALTHY), (400, 0.2, HEALTHY), (600, 0.01, late))
    assert (known.requests_per_s.value, known.at_least) == (300, False)
    bounded = searched((300, 0.01, HEALTHY), (350, 0.01, late), (400, 0.2, HEALTHY))
    assert (bounded.requests_per_s.value, bounded.at_least) == (300, True)
    assert bounded.text() == "at least 300 (300 to 300)"
    assert searched((300, 0.01, late), (200, 0.01, late)) is None
    assert searched((300, 0.2, HEALTHY), (200, 0.2, HEALTHY)) is None


def test_the_report_is_one_file_that_needs_no_network(tmp_path: Path) -> None:
    path = write_report(_searched(), tmp_path)
    html = path.read_text()
    assert html.count("<svg") >= 8
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL))
    assert "url(http" not in html
    assert "@import" not in html
    assert "<script" not in html
    for text in (
        "digits:1: fastapi, triton",
        "Lowest median latency at concurrency 1: fastapi",
        "prefers-color-scheme: dark",
        "16 of 16",
        "p99 within 50 ms",
        "Search for the highest rate",
        "Spikes",
        "Soaks",
        "Where the time goes",
        "CPU and memory",
        "Latency by offered rate",
    ):
        assert text in html, text
    markdown = (tmp_path / "report.md").read_text()
    assert "| fastapi | 16 of 16 |" in markdown
    for table in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    images = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert images
    for image in images:
        assert (tmp_path / image).is_file()


def test_faults_are_shown(tmp_path: Path) -> None:
    busy = GeneratorHealth(cpu=0.99, lag_p50_ms=1, lag_p99_ms=5)
    lagging = run("fastapi", ClosedLoop(concurrency=4, duration_s=1), 0, recording([0.001], failed=3, health=busy))
    wrong = parity("torchserve", "00.png: <b>wrong</b>")
    bad = result(lanes=(*result().lanes, wrong), runs=(*result().runs, lagging))
    assert bad.problems == [
        "torchserve was not timed: 00.png: <b>wrong</b>",
        "INVALID: fastapi, sweep, concurrency 4, round 1: the generator was saturated: it used 99% of its core",
    ]
    html = write_report(bad, tmp_path).read_text()
    assert "FAILED" in html
    assert "&lt;b&gt;wrong" in html
    assert "the generator was saturated" in html
    assert "1 lane(s) gave wrong answers" in html


def test_a_tie_is_called_a_tie_and_two_rounds_are_too_few(tmp_path: Path) -> None:
    runs = [one.model_copy(update={"lane": "triton"}) for one in result().runs if one.lane == "fastapi"]
    twins = result(runs=(*(one for one in result().runs if one.lane == "fastapi"), *runs))
    assert "a tie" in write_report(twins, tmp_path).read_text()
    few = result(settings=BenchSettings(rounds=2), runs=tuple(one for one in result().runs if one.round < 2))
    assert "too few to distinguish a difference from noise" in write_report(few, tmp_path).read_text()


def test_a_report_of_nothing_is_still_a_report(tmp_path: Path) -> None:
    assert "No lane could be timed" in write_report(result(runs=(), lanes=()), tmp_path).read_text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "too few"), (0.0001234, "0.12"), (0.0456, "45.6"), (1.5, "1500"), (Estimate(0.002, 1), "2.00")],
)
def test_milliseconds(seconds: float | None, text: str) -> None:
    assert milliseconds(seconds) == text


def test_numbers_of_a_table_have_three_digits_and_no_exponent() -> None:
    assert with_interval(Estimate(0.9123, 1), 1000) == "912"
    assert with_interval(Estimate(0.99961, 1), 1000) == "1000"
    assert with_interval(Estimate(0.9123, 3, np.full(100, 0.99961)), 1000) == "912 (1000 to 1000)"
    assert with_interval(Estimate(12345.6, 1)) == "12346"
    assert with_interval(None) == "too few"
