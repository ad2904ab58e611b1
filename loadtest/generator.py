"""The load generator: one load on one target, in a process of its own (gevent patches the whole process).

python -m loadtest.generator < spec.json > recording.json
"""

# Locust must be imported first: it patches the standard library for gevent.
import gevent  # isort: skip
from locust.env import Environment  # isort: skip

import json
import os
import sys
import time

from loadtest.generator_spec import GeneratorSpec
from loadtest.recording import GeneratorHealth, Recording
from loadtest.targets import Question
from loadtest.user import PictureUser, Recorder
from serving.bundle import read_bundle

_TICK_S = 0.01


def generate(spec: GeneratorSpec) -> Recording:
    """Run the load, and say what was measured."""
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)
    bundle = read_bundle(spec.bundle, check=False)

    class LaneUser(PictureUser):
        target = spec.target
        questions = Question.all_of(bundle, spec.target.wire)
        timeout_s = spec.timeout_s

    environment = Environment(user_classes=[LaneUser])
    runner = environment.create_local_runner()
    runner.start(spec.load.concurrency, spawn_rate=spec.load.concurrency * 10)
    try:
        gevent.sleep(spec.load.warmup_s)
        recorder = LaneUser.recorder = Recorder()
        cpu = time.process_time()
        lags = _lags_until(recorder.opened_ns / 1e9 + spec.load.duration_s)
        recorder.close()
        cpu = time.process_time() - cpu
    finally:
        runner.quit()
    assert recorder.closed_ns is not None
    seconds = (recorder.closed_ns - recorder.opened_ns) / 1e9
    return Recording(
        seconds=seconds,
        answered=recorder.answered,
        failed=recorder.failed,
        errors=dict(recorder.errors),
        latencies=recorder.histogram.encode().decode(),
        max_latency_s=recorder.max_ns / 1e9,
        generator=GeneratorHealth(cpu=cpu / seconds, lag_p99_ms=sorted(lags)[int(len(lags) * 0.99)] * 1000),
    )


def _lags_until(deadline: float) -> list[float]:
    """Sleep in ticks until `deadline` (perf_counter seconds). Returns how late each tick came, in seconds."""
    lags = [0.0]
    while (now := time.perf_counter()) < deadline:
        wanted = min(now + _TICK_S, deadline)
        gevent.sleep(wanted - now)
        lags.append(time.perf_counter() - wanted)
    return lags


def main() -> None:
    """Spec on standard input, recording on standard output."""
    spec = GeneratorSpec.model_validate(json.load(sys.stdin))
    print(generate(spec).model_dump_json())


if __name__ == "__main__":
    main()
