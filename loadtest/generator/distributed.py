"""Several generator processes for one run, as Locust's master and workers. Each worker warms up by itself; the master
gives all of them the same instant to begin, and joins their rows.
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
from loadtest.generator.process import USER, Measured, make_stage, measure, user_class, users
from loadtest.generator.recording import GeneratorHealth, WarmUpReport
from loadtest.generator.requests_log import Requests
from loadtest.generator.spec import GeneratorSpec
from loadtest.generator.summarise import Window
from serving.processes import die_with_parent

_WARM, _BEGIN, _ROWS = "trident-warm", "trident-begin", "trident-rows"
_START_TIMEOUT_S = 60.0
_HEAD_START_S = 0.3


class _Rows(BaseModel):
    window: tuple[float, float]
    warm_up: WarmUpReport
    health: GeneratorHealth


def measure_with_workers(spec: GeneratorSpec) -> Measured:
    """The run, made by `spec.processes` workers of this process."""
    environment = Environment(user_classes=[type(USER, (User,), {})])  # a name only: the master starts none itself
    master = environment.create_master_runner("127.0.0.1", 0)
    warm: list[Any] = []
    parts: list[tuple[_Rows, Requests]] = []
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
    """What a worker does: its share of the run."""
    stage = make_stage(spec)
    environment = Environment(user_classes=[user_class(spec, stage, 1 / spec.processes, index)])
    runner = environment.create_worker_runner("127.0.0.1", port)
    begin: AsyncResult[float] = AsyncResult()
    runner.register_message(_BEGIN, lambda msg, **_: begin.set(float(msg.data["at"])))

    def agree(warm_up: WarmUpReport) -> float:
        runner.send_message(_WARM, warm_up.model_dump())
        return float(begin.get(timeout=_START_TIMEOUT_S + spec.warm_up.max_s))

    while not runner.user_count:
        gevent.sleep(0.01)
    measured = measure(stage, spec, agree)
    window = (measured.window.from_s, measured.window.until_s)
    said = _Rows(window=window, warm_up=measured.warm_up, health=measured.health)
    runner.send_message(_ROWS, {"said": said.model_dump_json(), "rows": measured.requests.to_bytes()})
    runner.greenlet.join()


def _read(data: Any) -> tuple[_Rows, Requests]:
    return _Rows.model_validate_json(data["said"]), Requests.load(data["rows"])


def _until(reached: Any, timeout_s: float, workers: list[subprocess.Popen[str]], what: str) -> None:
    deadline = time.perf_counter() + timeout_s
    while not reached():
        if time.perf_counter() > deadline or any(worker.poll() for worker in workers):
            raise GeneratorError(f"the generator's workers did not {what} (see above)")
        gevent.sleep(0.02)


def _joined(parts: list[tuple[_Rows, Requests]]) -> Measured:
    said = [part for part, _ in parts]
    health = GeneratorHealth(
        cpu=max(part.health.cpu for part in said),
        lag_p50_ms=max(part.health.lag_p50_ms for part in said),
        lag_p99_ms=max(part.health.lag_p99_ms for part in said),
        waited_for_connection=sum(part.health.waited_for_connection for part in said),
        unsent=sum(part.health.unsent for part in said),
        nice=max(part.health.nice for part in said),
    )
    warm_up = WarmUpReport(
        seconds=max(part.warm_up.seconds for part in said), stable=all(part.warm_up.stable for part in said)
    )
    return Measured(Requests.joined([rows for _, rows in parts]), Window(*said[0].window), warm_up, health)
