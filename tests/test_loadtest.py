"""The load test without the real servers: statistics, order, report, and the generator against a small server."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadtest.benchmark import loads, run_benchmark, schedule
from loadtest.environment import describe_environment
from loadtest.errors import LoadtestError, ResultError
from loadtest.generator_spec import GeneratorSpec
from loadtest.recording import GeneratorHealth, Recording, new_histogram
from loadtest.report import write_report
from loadtest.result import Lane, Result, Run, latest_result, read_result, write_result
from loadtest.scenarios import Load
from loadtest.settings import BenchSettings
from loadtest.statistics import merged, min_samples, percentile_s
from loadtest.summary import headlines, milliseconds, rows
from loadtest.targets import AnswerCheck, Question, Target
from serving.bundle import Bundle
from serving.clients.wire import FastapiWire
from serving.server_plan import Endpoint, ServerName


def target(server: ServerName = "fastapi", url: str = "http://127.0.0.1:1") -> Target:
    return Target(
        endpoint=Endpoint(server=server, url=url, metrics_url=""), model="digits", version=1, runtime="onnxruntime"
    )


def recording(latencies_s: list[float], seconds: float = 1.0, failed: int = 0, cpu: float = 0.3) -> Recording:
    histogram = new_histogram()
    for latency in latencies_s:
        histogram.record_value(round(latency * 1e9))
    return Recording(
        seconds=seconds,
        answered=len(latencies_s),
        failed=failed,
        errors={"HTTP 500: broken": failed} if failed else {},
        latencies=histogram.encode().decode(),
        max_latency_s=max(latencies_s, default=0),
        generator=GeneratorHealth(cpu=cpu, lag_p99_ms=0.5),
    )


def result(**changes: Any) -> Result:
    runs = []
    for server, factor in (("fastapi", 1.0), ("triton", 2.0)):
        for round_ in range(2):
            for scenario, concurrency in (("single-stream", 1), ("sweep", 4)):
                load = Load(scenario=scenario, concurrency=concurrency, warmup_s=0, duration_s=1)
                latencies = [factor * 0.001 * (1 + i / 1000) * concurrency for i in range(700)]
                runs.append(
                    Run(lane=server, load=load, round=round_, started=datetime.now(UTC), recording=recording(latencies))
                )
    targets = (target("fastapi"), target("triton"))
    lanes = [Lane(target=each, golden_pictures=16, max_abs_difference=1e-7, faults=()) for each in targets]
    content: dict[str, Any] = {
        "created": datetime.now(UTC),
        "bundle": "digits:1",
        "settings": BenchSettings(),
        "serving": None,
        "generator_cores": (1,),
        "environment": describe_environment(),
        "lanes": tuple(lanes),
        "runs": tuple(runs),
    }
    return Result(**content | changes)


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
    histogram = merged([recording([12.3e-6, 300.0]).latencies])
    assert histogram.get_min_value() == pytest.approx(12_300, rel=2e-3)
    assert histogram.get_max_value() == pytest.approx(300e9, rel=2e-3)


def test_merging_adds() -> None:
    assert merged([recording([0.1] * 3).latencies, recording([0.2] * 4).latencies]).total_count == 7


# --- order


def test_lanes_are_interleaved_in_an_order_that_the_seed_gives() -> None:
    targets = [target("fastapi"), target("torchserve"), target("triton")]
    settings = BenchSettings(rounds=6, concurrency=(2, 4), seed=1)
    plan = schedule(targets, settings)
    assert len(plan) == 6 * len(loads(settings)) * 3
    orders = []
    for start in range(0, len(plan), 3):
        group = plan[start : start + 3]
        assert len({(round_, load) for round_, load, _ in group}) == 1  # one load at a time on all lanes
        orders.append(tuple(one.lane for _, _, one in group))
        assert set(orders[-1]) == {"fastapi", "torchserve", "triton"}
    assert len(set(orders)) > 1
    assert plan == schedule(targets, settings)
    assert plan != schedule(targets, settings.model_copy(update={"seed": 2}))


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
    row = next(row for row in rows(result()) if (row.lane, row.concurrency) == ("triton", 4))
    assert row.requests == 1400
    assert row.requests_per_s == 700
    assert row.p50_s == pytest.approx(0.0108, rel=0.01)


def test_headlines() -> None:
    fastapi, triton = headlines(result())
    assert (fastapi.parity, fastapi.errors) == ("16 of 16", 0)
    assert fastapi.single is not None
    assert triton.single is not None
    assert fastapi.single.p50_s is not None
    assert triton.single.p50_s == pytest.approx(2 * fastapi.single.p50_s, rel=0.01)


def test_the_report_is_one_file_that_needs_no_network(tmp_path: Path) -> None:
    path = write_report(result(), tmp_path)
    html = path.read_text()
    assert html.count("<svg") == 2
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL))
    assert "url(http" not in html
    assert "@import" not in html
    assert "<script" not in html
    for text in ("digits:1 behind fastapi, triton", "answered by fastapi in", "prefers-color-scheme: dark", "16 of 16"):
        assert text in html
    markdown = (tmp_path / "report.md").read_text()
    assert "| fastapi | 16 of 16 |" in markdown
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        assert (tmp_path / picture).is_file()


def test_faults_are_shown(tmp_path: Path) -> None:
    wrong = Lane(
        target=target("torchserve"), golden_pictures=16, max_abs_difference=None, faults=("00.png: <b>wrong</b>",)
    )
    lagging = Run(
        lane="fastapi",
        load=Load(scenario="sweep", concurrency=4, warmup_s=0, duration_s=1),
        round=0,
        started=datetime.now(UTC),
        recording=recording([0.001], failed=3, cpu=0.99),
    )
    bad = result(lanes=(*result().lanes, wrong), runs=(*result().runs, lagging))
    assert bad.faults == [
        "torchserve was not timed: 00.png: <b>wrong</b>",
        "fastapi, sweep x 4, round 1: the generator used 99% of its core",
    ]
    html = write_report(bad, tmp_path).read_text()
    assert "FAILED" in html
    assert "&lt;b&gt;wrong" in html
    assert "the generator used 99% of its core" in html


def test_a_report_of_nothing_is_still_a_report(tmp_path: Path) -> None:
    assert "No lane could be timed" in write_report(result(runs=(), lanes=()), tmp_path).read_text()


@pytest.mark.parametrize(("seconds", "text"), [(None, "too few"), (0.0001234, "0.12"), (0.0456, "45.6"), (1.5, "1500")])
def test_milliseconds(seconds: float | None, text: str) -> None:
    assert milliseconds(seconds) == text


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
        assert check.fault(question, 200, {}, right) == ""
    assert "wrong answer" in check.fault(question, 200, {}, body((question.class_id + 1) % 10, question.probability))
    assert "wrong answer" in check.fault(question, 200, {}, body(question.class_id, question.probability - 0.01))
    assert "HTTP 500" in check.fault(question, 500, {}, right)
    assert "not a prediction" in check.fault(question, 200, {}, b"{}")


# --- the generator


@pytest.fixture
def slow_server(digits: Bundle) -> Iterator[tuple[str, list[float]]]:
    """Answers every picture rightly after 20 ms, but every tenth with 500. Notes when requests came."""
    questions = {question.request.body: question for question in Question.all_of(digits, FastapiWire("digits", 1))}
    came: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16  # headers and body in one packet, else they wait for each other (Nagle)

        def do_POST(self) -> None:
            question = questions[self.rfile.read(int(self.headers["content-length"]))]
            came.append(time.monotonic())
            time.sleep(0.02)
            entry = {"label": question.label, "class_id": question.class_id, "probability": question.probability}
            body = json.dumps({"model": "digits", "version": 1, "predictions": [entry]}).encode()
            self.send_response(500 if len(came) % 10 == 0 else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()


def generate(spec: GeneratorSpec) -> Recording:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.generator"],
        input=spec.model_dump_json(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return Recording.model_validate_json(done.stdout)


def test_the_generator_measures_what_happens(slow_server: tuple[str, list[float]], digits: Bundle) -> None:
    url, _ = slow_server
    load = Load(scenario="sweep", concurrency=3, warmup_s=0.3, duration_s=1.5)
    measured = generate(GeneratorSpec(target=target(url=url), load=load, bundle=digits.path, timeout_s=5))
    total = measured.answered + measured.failed
    assert measured.seconds == pytest.approx(1.5, abs=0.1)
    assert 100 < total <= 3 * 1.6 / 0.02
    assert measured.failed == pytest.approx(total / 10, abs=5)
    assert all(error.startswith("HTTP 500") for error in measured.errors)
    p50 = percentile_s(merged([measured.latencies]), 50)
    assert p50 is not None
    assert 0.02 <= p50 < 0.06


def test_nobody_listening_is_counted_as_errors(digits: Bundle) -> None:
    load = Load(scenario="single-stream", concurrency=1, warmup_s=0, duration_s=0.3)
    measured = generate(GeneratorSpec(target=target(), load=load, bundle=digits.path, timeout_s=1))
    assert measured.answered == 0
    assert measured.failed > 0
    assert any("refused" in error for error in measured.errors)


def test_a_lane_with_wrong_answers_is_not_timed(
    slow_server: tuple[str, list[float]], other_weights: Bundle, digits: Bundle
) -> None:
    url, came = slow_server
    measured = run_benchmark([target(url=url)], digits, BenchSettings(rounds=1, duration_s=0.2))
    assert measured.runs == ()
    assert "classes instead of 10" in measured.lanes[0].faults[0]
    assert len(came) == len(digits.golden_pictures())  # the gate, and nothing else


def test_bad_settings_name_their_flag() -> None:
    from loadtest.console import bench_settings

    assert bench_settings(rounds=None, concurrency=["2", "4"]).concurrency == (2, 4)
    with pytest.raises(LoadtestError, match="--rounds"):
        bench_settings(rounds=0)
    with pytest.raises(LoadtestError, match="--scenarios"):
        bench_settings(scenarios=["marathon"])
