"""Artificial recordings, runs and results for the tests of the load test."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from bundle.golden import Fault
from loadtest.benchmark.result import Result, Run
from loadtest.generator.recording import GeneratorHealth, Recording, WarmUpReport
from loadtest.generator.requests_log import ROW, Requests
from loadtest.generator.summarise import Window, summarise
from loadtest.lanes.lane import Lane
from loadtest.lanes.parity_gate import LaneParity
from loadtest.load import ClosedLoop, Load, Loop
from loadtest.machine.environment import describe_environment
from loadtest.machine.resources import ResourceUse
from loadtest.settings import BenchSettings

HEALTHY = GeneratorHealth(cpu=0.3, lag_p50_ms=0.02, lag_p99_ms=0.1)
WARM = WarmUpReport(seconds=1.0, stable=True)
FAULTS = (None, Fault("no-answer", "HTTP 500: broken"), Fault("probabilities", "top-1 class 7, golden 1"))


def recording(
    latencies_s: Sequence[float],
    seconds: float = 1.0,
    failed: int = 0,
    wrong: int = 0,
    health: GeneratorHealth = HEALTHY,
    **stages: float,
) -> Recording:
    """Requests spread evenly over the run; the last ones failed, or got wrong answers."""
    count = len(latencies_s) + failed + wrong
    rows = np.zeros(count, ROW)
    for name in ("decode_s", "queue_s", "inference_s", "total_s"):
        rows[name] = stages.get(name, np.nan)
    rows["scheduled_ns"] = np.arange(count) * seconds / max(1, count) * 1e9
    rows["sent_ns"] = rows["scheduled_ns"]
    rows["done_ns"] = rows["scheduled_ns"]
    rows["done_ns"][: len(latencies_s)] += (np.asarray(latencies_s) * 1e9).astype(np.int64)
    rows["first_byte_ns"] = rows["done_ns"]
    rows["fault"][len(latencies_s) :] = 1
    rows["fault"][len(latencies_s) + failed :] = 2
    return summarise(Requests(rows, FAULTS), Window(0, seconds), WARM, health)


def lane(name: str = "fastapi", url: str = "http://127.0.0.1:1", **more: Any) -> Lane:
    """A lane of one of our servers, at an address where no server is."""
    server = name.split()[0]
    content = {
        "name": name,
        "server": server,
        "url": url,
        "dialect": server,
        "model": "digits",
        "version": 1,
        "tolerance": 1e-4,
    }
    return Lane.model_validate(content | more)


def parity(name: str, *faults: str) -> LaneParity:
    """A lane that has passed the parity gate, or not."""
    difference = None if faults else 1e-7
    return LaneParity(lane=lane(name), golden_inputs=16, max_abs_difference=difference, faults=faults)


def run(
    lane: str, loop: Loop, round_: int, recorded: Recording, scenario: str = "sweep", probe: bool = False, **more: Any
) -> Run:
    """Make a run."""
    load = Load(scenario=scenario, loop=loop, probe=probe)
    return Run(lane=lane, load=load, round=round_, started=datetime.now(UTC), recording=recorded, **more)


def resources(**changes: Any) -> ResourceUse:
    """The use of a server that takes half a core."""
    content: dict[str, Any] = {
        "seconds": 1.0,
        "cpu_s": 0.5,
        "cores": 0.5,
        "memory_mib": 200.0,
        "memory_start_mib": 190.0,
        "memory_end_mib": 200.0,
        "threads": 10,
        "idle_cores": {},
        "other_cores": 0.0,
    }
    return ResourceUse(**content | changes)


def result(**changes: Any) -> Result:
    """fastapi, and triton with twice its latency, at concurrency 1 and 4, in three rounds."""
    runs = []
    for name, factor in (("fastapi", 1.0), ("triton", 2.0)):
        for round_ in range(3):
            for scenario, concurrency in (("single-stream", 1), ("sweep", 4)):
                latencies = [factor * 0.001 * (1 + i / 1000 + round_ / 50) * concurrency for i in range(700)]
                recorded = recording(latencies, decode_s=0.0002, inference_s=0.0005)
                loop = ClosedLoop(concurrency=concurrency, duration_s=1)
                runs.append(run(name, loop, round_, recorded, scenario, resources=resources()))
    content: dict[str, Any] = {
        "created": datetime.now(UTC),
        "bundle": "digits:1",
        "settings": BenchSettings(),
        "serving": {},
        "server_cores": (0,),
        "generator_cores": (1,),
        "environment": describe_environment(),
        "calibration": None,
        "lanes": (parity("fastapi"), parity("triton")),
        "ceilings": (),
        "runs": tuple(runs),
    }
    return Result(**content | changes)


def drive(scenario: Any, answer: Any, past: Any = ()) -> list[tuple[Load, Recording]]:
    """The loads of a scenario with their recordings, which `answer(load)` returns."""
    loads, done = scenario.loads(past), []
    try:
        load = next(loads)
        while True:
            done.append((load, answer(load)))
            load = loads.send(done[-1][1])
    except StopIteration:
        return done


def server_with(capacity: float) -> Any:
    """Latency of an M/M/1 server: 10 ms at half of its capacity, without bound above it."""

    def answer(load: Load) -> Recording:
        if isinstance(load.loop, ClosedLoop):
            return recording([0.01] * round(capacity), 1.0)
        mean = 0.005 / max(0.01, 1 - load.loop.rate / capacity)
        return recording([mean * x for x in np.linspace(0.5, 3.0, 1000)], load.loop.duration_s)

    return answer
