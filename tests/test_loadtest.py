"""The load test without any server: settings, statistics, order, scenarios, result and report."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.benchmark import steps
from loadtest.ceiling import Ceiling, CeilingSpec
from loadtest.errors import LoadtestError, ResultError, TargetError
from loadtest.generator.recording import GeneratorHealth, Recording, decode_histogram
from loadtest.generator.summarise import histogram_of
from loadtest.lanes import Stack, lineup_of, named, parse_inputs, parse_target
from loadtest.load import ClosedLoop, Load, OpenLoop, Phase
from loadtest.report import write_report
from loadtest.report.tables import theil_sen, with_interval
from loadtest.result import latest_result, read_result, write_result
from loadtest.scenarios import Past, Server, SingleStream, Slo, Spike, Sweep
from loadtest.scenarios.spike import recovery_s
from loadtest.settings import BenchSettings, read_settings
from loadtest.statistics import Estimate, mean_of, merged, min_samples, percentile_of, percentile_s
from loadtest.summary import headlines, milliseconds, rows
from loadtest.targets import AnswerCheck, Question
from loadtest.tensor_wire import TensorWire
from serving.bundle import Bundle
from serving.clients.wire import FastapiWire
from serving.server_plan import Endpoint
from tests.lab import lane, recording, resources, result, run, target

# --- statistics


@pytest.mark.parametrize(("percentile", "samples"), [(90, 64), (99, 662), (99.9, 6636)])
def test_the_fewest_samples_are_mlperfs(percentile: float, samples: int) -> None:
    assert min_samples(percentile) == samples


def test_percentiles_are_exact_to_a_thousandth_and_refused_from_too_few() -> None:
    histogram = merged([recording([i / 1e6 for i in range(1, 1001)]).latencies])
    assert percentile_s(histogram, 50) == pytest.approx(500e-6, rel=2e-3)
    assert percentile_s(histogram, 99) == pytest.approx(990e-6, rel=2e-3)
    assert percentile_s(histogram, 99.9) is None
    assert percentile_s(merged([recording([0.001] * 661).latencies]), 99) is None
    assert percentile_s(merged([recording([0.001] * 662).latencies]), 99) == pytest.approx(0.001, rel=2e-3)


def test_histograms_keep_microseconds_and_minutes() -> None:
    histogram = decode_histogram(histogram_of(np.array([12_300, 300 * 10**9])))
    assert histogram.get_min_value() == pytest.approx(12_300, rel=2e-3)
    assert histogram.get_max_value() == pytest.approx(300e9, rel=2e-3)


def test_merging_adds() -> None:
    assert merged([recording([0.1] * 3).latencies, recording([0.2] * 4).latencies]).total_count == 7


def test_intervals_hold_what_they_promise() -> None:
    """The 95 % interval of a mean over 5 rounds contains the true mean about as often as it says. The percentile
    bootstrap is known to be a little narrow from so few.
    """
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        interval = mean_of(draw.normal(10, 1, 5).tolist()).interval
        assert interval is not None
        inside += interval.low <= 10 <= interval.high
    assert 0.85 <= inside / 300 <= 0.99


def test_an_interval_needs_three_rounds_and_a_tie_has_none_without() -> None:
    assert mean_of([1.0, 2.0]).interval is None
    assert mean_of([1.0, 2.0]).ties(mean_of([5.0, 6.0]))
    steady, other = mean_of([1.0, 1.01, 0.99]), mean_of([1.2, 1.21, 1.19])
    assert not steady.ties(other)
    assert steady.ties(mean_of([1.02, 0.97, 1.01]))
    rounds = [recording([0.001 + i / 1e6 for i in range(700)]).latencies for _ in range(3)]
    estimate = percentile_of(rounds, 99)
    assert estimate is not None
    assert estimate.interval is not None
    assert estimate.interval.low <= estimate.value * 1.001
    assert estimate.interval.high >= estimate.value * 0.999


def test_rounds_are_paired_in_a_ratio() -> None:
    """A drift that hits both lanes in the same rounds does not hide the difference between them."""
    drift = np.array([1.0, 1.5, 0.7, 1.2])
    ratio = mean_of((drift * 1.1).tolist()).ratio(mean_of(drift.tolist())).interval
    assert ratio is not None
    assert ratio.low == pytest.approx(1.1)
    assert ratio.high == pytest.approx(1.1)


def test_outliers_do_not_move_the_drift() -> None:
    points = [(float(x), 2.0 + 0.1 * x) for x in range(20)]
    points[7] = (7.0, 900.0)
    assert theil_sen(points) == pytest.approx(0.1)


# --- scenarios and order


def test_lanes_are_interleaved_in_an_order_that_the_seed_gives() -> None:
    targets = [target("fastapi"), target("torchserve"), target("triton")]

    def plan(seed: int) -> list[tuple[str, Load]]:
        shuffled, found = random.Random(seed), []
        for _ in range(6):
            for one, load, tell in steps(Sweep(concurrency=(2, 4)), targets, {}, shuffled):
                found.append((one.lane, load))
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


def _drive(scenario: Any, answer: Any, past: Any = ()) -> list[tuple[Load, Recording]]:
    """What a scenario asks for, if each load is answered by `answer(load)`."""
    loads, done = scenario.loads(past), []
    try:
        load = next(loads)
        while True:
            done.append((load, answer(load)))
            load = loads.send(done[-1][1])
    except StopIteration:
        return done


def _server_with(capacity: float) -> Any:
    """Latency of an M/M/1 server: 10 ms at half of its capacity, without bound above it."""

    def answer(load: Load) -> Recording:
        if isinstance(load.loop, ClosedLoop):
            return recording([0.01] * round(capacity), 1.0)
        mean = 0.005 / max(0.01, 1 - load.loop.rate / capacity)
        return recording([mean * x for x in np.linspace(0.5, 3.0, 1000)], load.loop.duration_s)

    return answer


def test_slo_finds_the_highest_rate() -> None:
    slo = Slo(slo_ms=50, resolution=0.05)
    done = _drive(slo, _server_with(400))
    # 0.005 / (1 - r) * 3 * 0.99 = 0.05 at r = 0.70
    assert slo.highest(done) == pytest.approx(400 * 0.70, rel=0.06)
    assert len(done) < 12
    for load, _ in done[1:]:
        assert isinstance(load.loop, OpenLoop)
        assert load.loop.rate * load.loop.duration_s >= 662 or load.loop.duration_s >= slo.duration_s
    later = _drive(slo, _server_with(400), [Past(*entry) for entry in done])
    assert not any(load.probe for load, _ in later)
    assert slo.highest(later) == pytest.approx(400 * 0.70, rel=0.06)


def test_slo_counts_failed_requests_as_late() -> None:
    slo = Slo(slo_ms=50)
    assert slo.held(recording([0.01] * 990, failed=10))
    assert not slo.held(recording([0.01] * 980, failed=20))
    assert slo.held(recording([0.01] * 990 + [0.2] * 10))
    assert not slo.held(recording([0.01] * 980 + [0.2] * 20))
    assert not slo.held(recording([], failed=5))


def test_slo_gives_up_on_a_server_that_never_holds() -> None:
    slo = Slo(slo_ms=1)
    assert slo.highest(_drive(slo, _server_with(100))) == 0


def test_slo_ends_when_a_probe_says_nothing() -> None:
    late = GeneratorHealth(cpu=0.2, lag_p50_ms=5, lag_p99_ms=50)

    def answer(load: Load) -> Recording:
        found: Recording = _server_with(400)(load).model_copy(update={"generator": late})
        return found

    done = _drive(Slo(slo_ms=50), answer)
    assert len(done) == 2
    assert Slo(slo_ms=50).highest(done) == 0


def test_server_takes_its_shares_of_the_first_rounds_capacity_in_every_round() -> None:
    first = _drive(Server(shares=(0.5, 0.9)), _server_with(200))
    assert first[0][0].probe
    assert [getattr(load.loop, "rate", 0) for load, _ in first[1:]] == pytest.approx([100, 180], rel=0.02)
    second = _drive(Server(shares=(0.5, 0.9)), _server_with(300), [Past(*entry) for entry in first])
    assert [load for load, _ in second] == [load for load, _ in first[1:]]
    assert [load.loop.label for load, _ in _drive(Server(rates=(7, 9)), _server_with(1))] == ["7/s", "9/s"]


def test_recovery_is_counted_from_the_end_of_the_spike() -> None:
    phases = (Phase(rate=100, duration_s=2), Phase(rate=300, duration_s=1), Phase(rate=100, duration_s=3))
    loop = OpenLoop(phases=phases)
    slow_from, slow_until = 200, 450  # requests: 2.0 s to 4.5 s at 100/s
    latencies = [0.5 if slow_from <= i < slow_until else 0.01 for i in range(600)]
    assert recovery_s(loop, recording(latencies, 6.0)) == pytest.approx(1.5, abs=0.11)
    never = [0.5 if slow_from <= i else 0.01 for i in range(600)]
    assert recovery_s(loop, recording(never, 6.0)) is None
    load = _drive(Spike(), _server_with(100))[-1][0]
    assert isinstance(load.loop, OpenLoop)
    assert [phase.rate for phase in load.loop.phases] == pytest.approx([40, 150, 40], rel=0.02)


# --- settings


def test_flags_go_to_the_scenarios_that_have_them() -> None:
    settings = read_settings(
        scenario=["single-stream", "server"], rates=["50", "100"], duration_s=2, warmup_s=0.5, rounds=None
    )
    assert settings.scenarios == (SingleStream(duration_s=2), Server(rates=(50, 100), duration_s=2))
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
    with pytest.raises(LoadtestError, match="no benchmark file"):
        read_settings(file)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"rounds": 0}, "--rounds"),
        ({"scenario": ["marathon"]}, "--scenario"),
        ({"concurrency": ["2", "x"]}, "--concurrency"),
        ({"rates": [5]}, "server, which was not asked for"),
        ({"duration_s": -1}, "--duration-s"),
    ],
)
def test_bad_settings_name_their_flag(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(LoadtestError, match=said):
        read_settings(**flags)


# --- lanes


def test_lanes_are_named_by_what_differs(digits: Bundle) -> None:
    fastapi = Endpoint(server="fastapi", url="http://127.0.0.1:1", metrics_url="")
    triton = Endpoint(server="triton", url="http://127.0.0.1:2", grpc="127.0.0.1:3", metrics_url="")
    serving = {"runtime": "onnxruntime", "precision": "fp32", "device": "cpu", "cores": [0], "workers": 2, "threads": 0}
    one = Stack((fastapi, triton), {**serving, "max_batch_size": 8}, {"fastapi": (11,), "triton": (12,)})
    two = Stack((fastapi,), {**serving, "runtime": "torchscript", "max_batch_size": 8}, {"fastapi": (13,)})
    lineup = lineup_of([one], digits, [], ("http", "grpc"), ("picture", "tensor"))
    assert [lane.lane for lane in lineup.targets] == [
        "fastapi", "fastapi tensor", "triton", "triton grpc", "triton tensor"
    ]  # fmt: skip
    assert lineup.ceilings["triton grpc"] == CeilingSpec(
        runtime="onnxruntime", precision="fp32", threads=1, workers=2, max_batch_size=8, cores=(0,)
    )
    assert {lane.server_process for lane in lineup.targets} == {"fastapi, pid 11", "triton, pid 12"}
    mine = target("mine", dialect="picture", server="another server", path="/predict")
    both = lineup_of([one, two], digits, [mine])
    assert [lane.lane for lane in both.targets] == [
        "fastapi onnxruntime", "triton onnxruntime", "fastapi torchscript", "mine"
    ]  # fmt: skip
    with pytest.raises(TargetError, match="two targets"):
        named([mine, mine])
    with pytest.raises(TargetError, match="no lane"):
        lineup_of([Stack((fastapi,))], digits, [], ("grpc",))


@pytest.mark.parametrize("entry", ["http://127.0.0.1:1", "mine=127.0.0.1:1", "mine=http://127.0.0.1:1/v2/models/x"])
def test_a_target_is_a_name_and_an_address(entry: str, digits: Bundle) -> None:
    with pytest.raises(TargetError, match="--target"):
        parse_target(entry, digits)


def test_targets_are_told_apart_by_their_path(digits: Bundle) -> None:
    mine = parse_target("mine=http://127.0.0.1:1/v1/classify/", digits)
    assert (mine.lane, mine.dialect, mine.url, mine.path) == ("mine", "picture", "http://127.0.0.1:1", "/v1/classify")
    assert parse_target("mine=http://127.0.0.1:1", digits).path == "/predict"
    with pytest.raises(TargetError, match="picture and tensor"):
        parse_inputs("picture,video")


# --- answers


def test_every_answer_is_checked(digits: Bundle) -> None:
    wire = FastapiWire("digits", 1)
    question = Question.all_of(digits, wire)[0]
    check = AnswerCheck(wire)

    def body(class_id: int, probability: float) -> bytes:
        entry = {"label": str(class_id), "class_id": class_id, "probability": probability}
        return json.dumps({"model": "digits", "version": 1, "predictions": [entry]}).encode()

    right = body(question.class_id, question.probability)
    for _ in range(2):  # the second time it is recognised
        assert check.fault(question, 200, dict, right) == ""
    other = body((question.class_id + 1) % 10, question.probability)
    assert "wrong answer" in check.fault(question, 200, dict, other)
    assert "wrong answer" in check.fault(question, 200, dict, body(question.class_id, question.probability - 0.01))
    assert "HTTP 500" in check.fault(question, 500, dict, right)
    assert "not a prediction" in check.fault(question, 200, dict, b"{}")
    nothing = b'{"model": "digits", "version": 1, "predictions": []}'
    assert "wrong answer" in check.fault(question, 200, dict, nothing)


def test_pixels_are_the_pictures(digits: Bundle) -> None:
    wire = TensorWire("/v2/models/digits_classifier", digits.manifest)
    question = Question.all_of(digits, wire)[0]
    head = int(question.request.headers["inference-header-content-length"])
    assert json.loads(question.request.body[:head])["inputs"][0]["shape"] == [1, 3, 32, 32]
    assert len(question.request.body) == head + 3 * 32 * 32
    probabilities = digits.golden_probabilities()[0].astype("<f4").tobytes()
    headers = {"inference-header-content-length": "2"}
    check = AnswerCheck(wire)
    assert check.fault(question, 200, lambda: headers, b"{}" + probabilities) == ""
    assert "instead of 10" in check.fault(question, 200, lambda: headers, b"{}" + probabilities[:-4])
    assert "HTTP 400" in check.fault(question, 400, dict, b"no")


# --- result and report


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
    row = next(row for row in rows(result()) if (row.lane, row.load.loop.label) == ("triton", "4 at once"))
    assert row.requests == 2100
    assert row.requests_per_s.value == pytest.approx(700, rel=0.02)  # the last answers come too late
    assert row.p50_s is not None
    assert row.p50_s.value == pytest.approx(0.011, rel=0.01)
    assert row.stages_s == pytest.approx({"decode": 0.0002, "inference": 0.0005})
    assert row.missing_s == pytest.approx(row.mean_s - 0.0007)
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
    spoiled = run("fastapi", loop, 3, recording([9.0] * 700, health=busy))
    row = next(row for row in rows(result(runs=(*result().runs, spoiled))) if row.load.loop == loop)
    assert row.invalid == 1
    assert row.max_s < 1
    late = GeneratorHealth(cpu=0.5, lag_p50_ms=1, lag_p99_ms=5)
    steady = OpenLoop.steady(700, 1)
    assert "5.0 ms late" in run("fastapi", steady, 0, recording([0.01] * 700, health=late)).fault
    assert run("fastapi", steady, 0, recording([1.0] * 700, health=late)).fault == ""  # a twentieth of a percent
    assert "1 of 701 answers were wrong" in run("fastapi", loop, 0, recording([0.01] * 700, wrong=1)).fault
    disturbed = resources(idle_cores={"triton": 0.6}, other_cores=0.9)
    shared = run("fastapi", loop, 0, recording([0.01] * 700), resources=disturbed)
    assert "triton used 0.60 cores" in shared.fault
    assert "other processes of the machine used 0.9 cores" in shared.remark


def test_wrong_in_the_middle_makes_the_result_unsound() -> None:
    wrong = run("fastapi", ClosedLoop(concurrency=4, duration_s=1), 3, recording([0.01] * 700, wrong=3))
    assert result().sound
    assert not result(runs=(*result().runs, wrong)).sound
    assert not result(lanes=(lane("fastapi", "00.png: wrong"),)).sound


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
        "answered by fastapi in",
        "prefers-color-scheme: dark",
        "16 of 16",
        "p99 within 50 ms",
        "The search for the highest rate",
        "Spikes",
        "Soaks",
        "Where the time goes",
        "What it costs",
        "Latency against the offered rate",
    ):
        assert text in html, text
    markdown = (tmp_path / "report.md").read_text()
    assert "| fastapi | 16 of 16 |" in markdown
    for table in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert pictures
    for picture in pictures:
        assert (tmp_path / picture).is_file()


def test_faults_are_shown(tmp_path: Path) -> None:
    busy = GeneratorHealth(cpu=0.99, lag_p50_ms=1, lag_p99_ms=5)
    lagging = run("fastapi", ClosedLoop(concurrency=4, duration_s=1), 0, recording([0.001], failed=3, health=busy))
    wrong = lane("torchserve", "00.png: <b>wrong</b>")
    bad = result(lanes=(*result().lanes, wrong), runs=(*result().runs, lagging))
    assert bad.faults == [
        "torchserve was not timed: 00.png: <b>wrong</b>",
        "INVALID: fastapi, sweep, 4 at once, round 1: the generator was saturated: it used 99% of its core",
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
    assert "too few to tell a difference from noise" in write_report(few, tmp_path).read_text()


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
