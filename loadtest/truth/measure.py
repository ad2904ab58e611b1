"""Measurements of fake servers beside what they must be: with a stall, and with queues of known behaviour."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.errors import LoadtestError
from loadtest.generator.client import Generator
from loadtest.generator.fake_server import Behaviour, fake_server
from loadtest.generator.requests_log import Requests, Rows
from loadtest.generator.spec import GeneratorSpec
from loadtest.load import ClosedLoop, Load, Loop, OpenLoop, WarmUp
from loadtest.truth.queueing import Seconds, Service, mean_wait, wait_percentile, waits

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
_TRIES = 4
_LATE_S = 0.001
_ALONE_S = 1.5
_STARTED_S = 2.0


class BusyMachineError(LoadtestError):
    """The machine was too busy for the generator or the fake server to be on time; nothing can be said."""


@dataclass(frozen=True)
class Stalled:
    """Latencies in seconds of a server with a stall, of a lone request and at PERCENTILES: simulated (waiting time, and
    a lone request's latency), seen by the open and by the closed loop.
    """

    requests: int
    lone_s: float
    simulated: tuple[float, ...]
    open_loop: tuple[float, ...]
    closed_loop: tuple[float, ...]


def measure_stall(
    generator: Generator, seconds: float, rate: float = 20.0, service_s: float = 0.02, stall_s: float = 1.0
) -> Stalled:
    """A deterministic server that serves nobody for `stall_s`, a quarter into the run.

    Raises:
        BusyMachineError: see there.
    """
    behaviour = Behaviour(service="deterministic", mean_s=service_s, stall_s=stall_s)
    rows, stall_at_s = _run(generator, behaviour, OpenLoop.steady(rate, seconds), stall_after_s=seconds / 4)
    closed, _ = _run(generator, behaviour, ClosedLoop(concurrency=1, duration_s=seconds), stall_after_s=seconds / 4)
    lone_s = float(np.median(_latency(closed)))  # the service, and its way there and back
    arrivals = rows["scheduled_ns"] / 1e9
    truth = waits(arrivals, np.full(len(arrivals), service_s), (stall_at_s, stall_at_s + stall_s)) + lone_s
    return Stalled(len(rows), lone_s, _percentiles(truth), _percentiles(_latency(rows)), _percentiles(_latency(closed)))


@dataclass(frozen=True)
class Queue:
    """Waiting times in seconds of one queue at one load: measured, simulated with the same arrivals and service times,
    and in theory (which a finite run only approaches).
    """

    service: Service
    utilisation: float
    requests: int
    transit_s: float
    mean: tuple[float, float, float]
    p99: tuple[float, float, float]


def measure_queue(
    generator: Generator, service: Service, utilisation: float, seconds: float, mean_s: float = 0.02, seed: int = 0
) -> Queue:
    """Poisson arrivals at a server with a queue. What a lone request takes beyond its service (loopback, timers, the idle
    machine's waking up) is measured first, and is no waiting time.

    Raises:
        BusyMachineError: see there.
    """
    behaviour = Behaviour(service=service, mean_s=mean_s, seed=seed + 1)
    alone, _ = _run(generator, behaviour, ClosedLoop(concurrency=1, duration_s=_ALONE_S))
    transit_s = float(np.median(_latency(alone) - alone["inference_s"]))
    rows, _ = _run(generator, behaviour, OpenLoop.steady(utilisation / mean_s, seconds), seed)
    served = rows["inference_s"].astype(float)
    measured = _latency(rows) - served - transit_s
    truth = waits(rows["scheduled_ns"] / 1e9, served)
    return Queue(
        service=service,
        utilisation=utilisation,
        requests=len(rows),
        transit_s=transit_s,
        mean=(float(measured.mean()), float(truth.mean()), mean_wait(service, mean_s, utilisation)),
        p99=(
            float(np.percentile(measured, 99)),
            float(np.percentile(truth, 99)),
            wait_percentile(service, mean_s, utilisation, 99),
        ),
    )


def _run(
    generator: Generator, behaviour: Behaviour, loop: Loop, seed: int = 0, stall_after_s: float | None = None
) -> tuple[Rows, float]:
    """The rows of a run in which generator and server were on time, and the instant (perf_counter seconds) of the stall.
    Every try has other arrivals.
    """
    fault = ""
    for attempt in range(_TRIES):
        stall_at_s = time.perf_counter() + _STARTED_S + (stall_after_s or 0)
        if stall_after_s is not None:
            behaviour = behaviour.model_copy(update={"stall_at_s": stall_at_s})
        with fake_server(behaviour) as target, tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.npz"
            recording = generator.run(
                GeneratorSpec(
                    target=target,
                    load=Load(scenario="truth", loop=loop),
                    bundle=None,
                    timeout_s=30,
                    warm_up=WarmUp(min_s=0, max_s=0),
                    seed=seed + 100 * attempt,
                    requests_file=file,
                )
            )
            rows = Requests.load(file).rows
        fault = recording.fault(open_loop=isinstance(loop, OpenLoop)) or _server_fault(rows)
        if not fault:
            return rows, stall_at_s
    raise BusyMachineError(f"in {_TRIES} tries: {fault}")


def _server_fault(rows: Rows) -> str:
    """'' if the fake server answered when it meant to."""
    late = float(np.percentile(rows["total_s"] - rows["queue_s"] - rows["inference_s"], 95))
    return f"5 % of the fake server's answers left {late * 1000:.1f} ms late" if late > _LATE_S else ""


def _latency(rows: Rows) -> Seconds:
    latency: Seconds = (rows["done_ns"] - rows["scheduled_ns"]) / 1e9
    return latency


def _percentiles(values: Any) -> tuple[float, ...]:
    found: Sequence[float] = np.percentile(values, PERCENTILES).tolist()
    return tuple(found)
