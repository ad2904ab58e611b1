"""One run from start to end in this process: warm up until stable, measure, wait for the last answers."""

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
from loadtest.generator.request_set import RequestSet
from loadtest.generator.requests_log import Requests
from loadtest.generator.spec import GeneratorSpec
from loadtest.generator.summarise import Window, lags_ms, summarise, within
from loadtest.generator.users import ClosedLoopUser, OpenLoopUser, RunContext
from loadtest.lanes.golden_requests import golden_requests
from loadtest.load import OpenLoop, WarmUp

USER = "LaneUser"
_TICK_S = 0.01
_LEAST_ANSWERS = 5
_LAST_ANSWERS_S = 2.0
_WINDOWS = 3
_NICE_WHERE_SHARED = -10


@dataclass(frozen=True)
class RunRows:
    """What one process recorded."""

    requests: Requests
    window: Window
    warm_up: WarmUpReport
    health: GeneratorHealth

    def recording(self, requests_file: Path | None) -> Recording:
        """Summarise; store the rows of the window in `requests_file`."""
        if requests_file is not None:
            requests_file.parent.mkdir(parents=True, exist_ok=True)
            within(self.requests, self.window).save(requests_file)
        return summarise(self.requests, self.window, self.warm_up, self.health)


def make_context(spec: GeneratorSpec) -> RunContext:
    """Set up this process, and what the users of the run share."""
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)
    else:
        with contextlib.suppress(PermissionError):  # only root may: servers on the same cores must not delay it
            os.setpriority(os.PRIO_PROCESS, 0, min(_NICE_WHERE_SHARED, os.getpriority(os.PRIO_PROCESS, 0)))
    bundle = read_bundle(spec.bundle, check=False) if spec.bundle is not None else None
    wire = spec.lane.wire(bundle.manifest if bundle is not None else None)
    golden = golden_requests(spec.lane, bundle)
    requests = RequestSet(spec.lane, golden, wire, spec.api_key, spec.bad_requests, spec.seed)
    return RunContext(spec.lane, requests, spec.timeout_s)


def user_class(spec: GeneratorSpec, context: RunContext, share: float = 1.0, process: int = 0) -> type[User]:
    """The Locust user class that makes the load, or a process's share of it."""
    loop = spec.load.loop
    content: dict[str, object] = {"run_context": context, "abstract": False}
    if not isinstance(loop, OpenLoop):
        return type(USER, (ClosedLoopUser,), content)
    content |= {"loop": loop, "share": share, "seed": spec.seed * 1000 + process}
    content["max_in_flight"] = max(1, round(spec.max_in_flight * share))
    return type(USER, (OpenLoopUser,), content)


def users(spec: GeneratorSpec) -> int:
    """The number of Locust users."""
    loop = spec.load.loop
    return spec.processes if isinstance(loop, OpenLoop) else loop.concurrency


def measure_here(spec: GeneratorSpec) -> RunRows:
    """Make the run in this process."""
    context = make_context(spec)
    environment = Environment(user_classes=[user_class(spec, context)])
    runner = environment.create_local_runner()
    runner.start(users(spec), spawn_rate=max(100, users(spec)))
    try:
        return measure(context, spec, lambda _: time.perf_counter() + 0.02)
    finally:
        runner.quit()


def measure(context: RunContext, spec: GeneratorSpec, begin: Callable[[WarmUpReport], float]) -> RunRows:
    """Measure a run whose users have been started.

    Args:
        begin: called with the report of the warm-up; returns the start time of the measurement (perf_counter seconds).
    """
    warm_up = _warm_up(context, spec.warm_up)
    from_s = begin(warm_up)
    window = Window(from_s, from_s + spec.load.loop.duration_s)
    waited = context.waited_for_connection
    context.measure_until_s = window.until_s
    context.measure_from_s = window.from_s
    gevent.sleep(max(0.0, window.from_s - time.perf_counter()))
    cpu = time.process_time()
    ticks = _ticks_until(window.until_s)
    cpu = time.process_time() - cpu
    _last_answers(context, spec.timeout_s)
    requests = context.log.finish()
    rows = within(requests, window).rows
    p50, p99 = lags_ms(rows) if isinstance(spec.load.loop, OpenLoop) else (_at(ticks, 0.5), _at(ticks, 0.99))
    health = GeneratorHealth(
        cpu=cpu / window.seconds,
        lag_p50_ms=p50,
        lag_p99_ms=p99,
        waited_for_connection=context.waited_for_connection - waited,
        unsent=context.unsent + context.in_flight,
        nice=os.getpriority(os.PRIO_PROCESS, 0),
    )
    return RunRows(requests, window, warm_up, health)


def _warm_up(context: RunContext, warm_up: WarmUp) -> WarmUpReport:
    """Wait until latency is stable as `WarmUp` defines it, or its time is over."""
    started = time.perf_counter()
    means: list[float] = []
    stable = False
    while warm_up.max_s and (elapsed := time.perf_counter() - started) < max(warm_up.min_s, warm_up.max_s):
        if stable and elapsed >= warm_up.min_s:
            break
        gevent.sleep(max(0.01, warm_up.min_s / _WINDOWS))
        if len(context.recent_s) >= _LEAST_ANSWERS:
            recent, context.recent_s = context.recent_s, []
            means.append(sum(recent) / len(recent))
            last = means[-_WINDOWS:]
            stable = len(last) == _WINDOWS and max(last) <= min(last) * (1 + warm_up.tolerance)
    return WarmUpReport(seconds=time.perf_counter() - started, stable=stable)


def _ticks_until(deadline_s: float) -> list[float]:
    """Sleep in ticks until the deadline. Returns how late each tick was, in ms."""
    late = [0.0]
    while (now := time.perf_counter()) < deadline_s:
        wanted = min(now + _TICK_S, deadline_s)
        gevent.sleep(wanted - now)
        late.append((time.perf_counter() - wanted) * 1000)
    return late


def _last_answers(context: RunContext, timeout_s: float) -> None:
    """Wait for answers to requests that were scheduled in time; without them the slowest would be missing."""
    deadline = time.perf_counter() + timeout_s + _LAST_ANSWERS_S
    gevent.sleep(0.01)
    while context.in_flight and time.perf_counter() < deadline:
        gevent.sleep(0.01)


def _at(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]
