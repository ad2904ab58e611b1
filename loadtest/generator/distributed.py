"""Several generator processes for one run, as Locust's master and workers. Each worker warms up on its own; the master
sends all of them the same start time, and joins their rows.
"""

import subprocess
import sys
import time
from typing import Any

import gevent
from gevent.event import AsyncResult
from locust import User
from locust.env import Environment
from pydantic import BaseModel

from loadtest.errors import GeneratorError
from loadtest.generator.process import USER, RunRows, make_context, measure, user_class, users
from loadtest.generator.recording import GeneratorHealth, WarmUpReport
from loadtest.generator.requests_log import Requests
from loadtest.generator.spec import GeneratorSpec
from loadtest.generator.summarise import Window
from serving.processes import die_with_parent

_WARM, _BEGIN, _ROWS = "trident-warm", "trident-begin", "trident-rows"
_START_TIMEOUT_S = 60.0
_HEAD_START_S = 0.3


class _WorkerReport(BaseModel):
    window: tuple[float, float]
    warm_up: WarmUpReport
    health: GeneratorHealth


def measure_with_workers(spec: GeneratorSpec) -> RunRows:
    """Make the run with `spec.processes` worker processes."""
    environment = Environment(user_classes=[type(USER, (User,), {})])  # the master needs the name only
    master = environment.create_master_runner("127.0.0.1", 0)
    warm: list[Any] = []
    parts: list[tuple[_WorkerReport, Requests]] = []
    master.register_message(_WARM, lambda msg, **_: warm.append(msg.data))
    master.register_message(_ROWS, lambda msg, **_: parts.append(_read(msg.data)))
    command = [sys.executable, "-m", "loadtest.generator", "--worker-of", str(master.server.port)]
    workers = [
        subprocess.Popen([*command, str(index)], stdin=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        for index in range(spec.processes)
    ]
    try:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(spec.model_dump_json() + "\n")
            worker.stdin.close()
        _until(lambda: master.worker_count == spec.processes, _START_TIMEOUT_S, workers, "start")
        master.start(users(spec), spawn_rate=max(100, users(spec)))
        _until(lambda: len(warm) == spec.processes, _START_TIMEOUT_S + spec.warm_up.max_s, workers, "warm up")
        master.send_message(_BEGIN, {"at": time.perf_counter() + _HEAD_START_S})
        longest = spec.load.loop.duration_s + spec.timeout_s + _START_TIMEOUT_S
        _until(lambda: len(parts) == spec.processes, longest, workers, "finish")
    finally:
        master.quit()
        for worker in workers:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
    return _joined(parts)


def work(spec: GeneratorSpec, port: int, index: int) -> None:
    """Make a worker's share of the run."""
    context = make_context(spec)
    environment = Environment(user_classes=[user_class(spec, context, 1 / spec.processes, index)])
    runner = environment.create_worker_runner("127.0.0.1", port)
    begin: AsyncResult[float] = AsyncResult()
    runner.register_message(_BEGIN, lambda msg, **_: begin.set(float(msg.data["at"])))

    def agree(warm_up: WarmUpReport) -> float:
        runner.send_message(_WARM, warm_up.model_dump())
        return float(begin.get(timeout=_START_TIMEOUT_S + spec.warm_up.max_s))

    while not runner.user_count:
        gevent.sleep(0.01)
    measured = measure(context, spec, agree)
    window = (measured.window.from_s, measured.window.until_s)
    report = _WorkerReport(window=window, warm_up=measured.warm_up, health=measured.health)
    runner.send_message(_ROWS, {"report": report.model_dump_json(), "rows": measured.requests.to_bytes()})
    runner.greenlet.join()


def _read(data: Any) -> tuple[_WorkerReport, Requests]:
    return _WorkerReport.model_validate_json(data["report"]), Requests.load(data["rows"])


def _until(reached: Any, timeout_s: float, workers: list[subprocess.Popen[str]], what: str) -> None:
    deadline = time.perf_counter() + timeout_s
    while not reached():
        if time.perf_counter() > deadline or any(worker.poll() for worker in workers):
            raise GeneratorError(f"the generator's workers did not {what} (their output is above)")
        gevent.sleep(0.02)


def _joined(parts: list[tuple[_WorkerReport, Requests]]) -> RunRows:
    reports = [part for part, _ in parts]
    health = GeneratorHealth(
        cpu=max(part.health.cpu for part in reports),
        lag_p50_ms=max(part.health.lag_p50_ms for part in reports),
        lag_p99_ms=max(part.health.lag_p99_ms for part in reports),
        waited_for_connection=sum(part.health.waited_for_connection for part in reports),
        unsent=sum(part.health.unsent for part in reports),
        nice=max(part.health.nice for part in reports),
    )
    warm_up = WarmUpReport(
        seconds=max(part.warm_up.seconds for part in reports), stable=all(part.warm_up.stable for part in reports)
    )
    return RunRows(Requests.joined([rows for _, rows in parts]), Window(*reports[0].window), warm_up, health)
