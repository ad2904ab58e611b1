"""One run from start to end, in this process: warm up until stable, measure, wait for the last answers."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gevent
from locust import User
from locust.env import Environment

from bundle.store import read_bundle
from loadtest.generator.recording import GeneratorHealth, Recording, WarmUpReport
from loadtest.generator.requests_log import Requests
from loadtest.generator.spec import GeneratorSpec
from loadtest.generator.summarise import Window, lags_ms, summarise, within
from loadtest.generator.users import ClosedLoopUser, OnRequest, OpenLoopUser, Stage
from loadtest.load import OpenLoop, WarmUp
from loadtest.targets import Question

USER = "LaneUser"
_TICK_S = 0.01
_LEAST_ANSWERS = 5
_LAST_ANSWERS_S = 2.0
_WINDOWS = 3
_NICE_WHERE_SHARED = -10


@dataclass(frozen=True)
class Measured:
    """What one process saw."""

    requests: Requests
    window: Window
    warm_up: WarmUpReport
    health: GeneratorHealth

    def recording(self, requests_file: Path | None) -> Recording:
        """Summed up; the rows of the window are kept in `requests_file`."""
        if requests_file is not None:
            requests_file.parent.mkdir(parents=True, exist_ok=True)
            within(self.requests, self.window).save(requests_file)
        return summarise(self.requests, self.window, self.warm_up, self.health)


def make_stage(spec: GeneratorSpec, on_request: OnRequest | None = None) -> Stage:
    """What the run's users share."""
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)
    else:
        with contextlib.suppress(PermissionError):  # servers that share its cores must not make it late; root only
            os.setpriority(os.PRIO_PROCESS, 0, min(_NICE_WHERE_SHARED, os.getpriority(os.PRIO_PROCESS, 0)))
    bundle = read_bundle(spec.bundle, check=False) if spec.bundle is not None else None
    wire = spec.target.wire(bundle.manifest if bundle is not None else None)
    questions = Question.all_of(bundle, wire) if bundle is not None else [Question.null()]
    return Stage(spec.target, questions, wire, spec.timeout_s, spec.api_key, on_request)


def user_class(spec: GeneratorSpec, stage: Stage, share: float = 1.0, process: int = 0) -> type[User]:
    """The Locust user that makes the load, or a process's share of it."""
    loop = spec.load.loop
    content: dict[str, object] = {"stage": stage, "abstract": False}
    if not isinstance(loop, OpenLoop):
        return type(USER, (ClosedLoopUser,), content)
    content |= {"loop": loop, "share": share, "seed": spec.seed * 1000 + process}
    content["max_in_flight"] = max(1, round(spec.max_in_flight * share))
    return type(USER, (OpenLoopUser,), content)


def users(spec: GeneratorSpec) -> int:
    """How many of them."""
    loop = spec.load.loop
    return spec.processes if isinstance(loop, OpenLoop) else loop.concurrency


def measure_here(spec: GeneratorSpec) -> Measured:
    """The run, in this process alone."""
    stage = make_stage(spec)
    environment = Environment(user_classes=[user_class(spec, stage)])
    runner = environment.create_local_runner()
    runner.start(users(spec), spawn_rate=max(100, users(spec)))
    try:
        return measure(stage, spec, lambda _: time.perf_counter() + 0.02)
    finally:
        runner.quit()


def measure(stage: Stage, spec: GeneratorSpec, begin: Callable[[WarmUpReport], float]) -> Measured:
    """Measure a stage whose users run already. `begin` takes the report of the warm-up, and says at which instant
    (perf_counter seconds) the measured stretch begins.
    """
    warm_up = _warm_up(stage, spec.warm_up)
    from_s = begin(warm_up)
    window = Window(from_s, from_s + spec.load.loop.duration_s)
    waited = stage.waited_for_connection
    stage.measure_until_s = window.until_s
    stage.measure_from_s = window.from_s
    gevent.sleep(max(0.0, window.from_s - time.perf_counter()))
    cpu = time.process_time()
    ticks = _ticks_until(window.until_s)
    cpu = time.process_time() - cpu
    _last_answers(stage, spec.timeout_s)
    requests = stage.log.finish()
    rows = within(requests, window).rows
    p50, p99 = lags_ms(rows) if isinstance(spec.load.loop, OpenLoop) else (_at(ticks, 0.5), _at(ticks, 0.99))
    health = GeneratorHealth(
        cpu=cpu / window.seconds,
        lag_p50_ms=p50,
        lag_p99_ms=p99,
        waited_for_connection=stage.waited_for_connection - waited,
        unsent=stage.unsent + stage.in_flight,
        nice=os.getpriority(os.PRIO_PROCESS, 0),
    )
    return Measured(requests, window, warm_up, health)


def _warm_up(stage: Stage, warm_up: WarmUp) -> WarmUpReport:
    """Until the test of `WarmUp` is passed, or its time is over."""
    started = time.perf_counter()
    means: list[float] = []
    stable = False
    while warm_up.max_s and (elapsed := time.perf_counter() - started) < max(warm_up.min_s, warm_up.max_s):
        if stable and elapsed >= warm_up.min_s:
            break
        gevent.sleep(max(0.01, warm_up.min_s / _WINDOWS))
        if len(stage.recent_s) >= _LEAST_ANSWERS:
            recent, stage.recent_s = stage.recent_s, []
            means.append(sum(recent) / len(recent))
            last = means[-_WINDOWS:]
            stable = len(last) == _WINDOWS and max(last) <= min(last) * (1 + warm_up.tolerance)
    return WarmUpReport(seconds=time.perf_counter() - started, stable=stable)


def _ticks_until(deadline_s: float) -> list[float]:
    """Sleep in ticks. Returns how late each came, in ms."""
    late = [0.0]
    while (now := time.perf_counter()) < deadline_s:
        wanted = min(now + _TICK_S, deadline_s)
        gevent.sleep(wanted - now)
        late.append((time.perf_counter() - wanted) * 1000)
    return late


def _last_answers(stage: Stage, timeout_s: float) -> None:
    """Requests scheduled in time count, also if they are answered later: else the slowest would go unseen."""
    deadline = time.perf_counter() + timeout_s + _LAST_ANSWERS_S
    gevent.sleep(0.01)
    while stage.in_flight and time.perf_counter() < deadline:
        gevent.sleep(0.01)


def _at(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]
