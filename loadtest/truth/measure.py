"""Measurements of fake servers with a stall or a queue, beside the expected values."""

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
_ATTEMPTS = 4
_LATE_S = 0.001
_SINGLE_S = 1.5
_STARTED_S = 2.0


class BusyMachineError(LoadtestError):
    """The machine was too busy: the generator or the fake server was late in every attempt."""


@dataclass(frozen=True)
class StallFigures:
    """Latencies in seconds of a server with a stall.

    Args:
        single_s: median of a single request.
        simulated: at PERCENTILES, the simulated waiting time plus `single_s`.
        open_loop: at PERCENTILES, measured by an open loop; `closed_loop`: by a closed loop.
    """

    requests: int
    single_s: float
    simulated: tuple[float, ...]
    open_loop: tuple[float, ...]
    closed_loop: tuple[float, ...]


def measure_stall(
    generator: Generator, seconds: float, rate: float = 20.0, service_s: float = 0.02, stall_s: float = 1.0
) -> StallFigures:
    """Measure a deterministic server that stalls for `stall_s` after a quarter of the run.

    Raises:
        BusyMachineError: in no attempt were generator and server on time.
    """
    behaviour = Behaviour(service="deterministic", mean_s=service_s, stall_s=stall_s)
    rows, stall_at_s = _run(generator, behaviour, OpenLoop.steady(rate, seconds), stall_after_s=seconds / 4)
    closed, _ = _run(generator, behaviour, ClosedLoop(concurrency=1, duration_s=seconds), stall_after_s=seconds / 4)
    single_s = float(np.median(_latency(closed)))  # service time and transit
    arrivals = rows["scheduled_ns"] / 1e9
    truth = waits(arrivals, np.full(len(arrivals), service_s), (stall_at_s, stall_at_s + stall_s)) + single_s
    return StallFigures(
        len(rows), single_s, _percentiles(truth), _percentiles(_latency(rows)), _percentiles(_latency(closed))
    )


@dataclass(frozen=True)
class QueueFigures:
    """Waiting times in seconds of one queue at one load. `mean` and `p99`: measured; simulated with the same arrivals and
    service times; in theory, for an infinite run.
    """

    service: Service
    utilisation: float
    requests: int
    transit_s: float
    mean: tuple[float, float, float]
    p99: tuple[float, float, float]


def measure_queue(
    generator: Generator, service: Service, utilisation: float, seconds: float, mean_s: float = 0.02, seed: int = 0
) -> QueueFigures:
    """Measure Poisson arrivals at a server with a queue. The transit time of a single request (loopback, timers, wake-up of
    idle cores) is measured first, and subtracted.

    Raises:
        BusyMachineError: in no attempt were generator and server on time.
    """
    behaviour = Behaviour(service=service, mean_s=mean_s, seed=seed + 1)
    single, _ = _run(generator, behaviour, ClosedLoop(concurrency=1, duration_s=_SINGLE_S))
    transit_s = float(np.median(_latency(single) - single["inference_s"]))
    rows, _ = _run(generator, behaviour, OpenLoop.steady(utilisation / mean_s, seconds), seed)
    served = rows["inference_s"].astype(float)
    measured = _latency(rows) - served - transit_s
    truth = waits(rows["scheduled_ns"] / 1e9, served)
    return QueueFigures(
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
    """The rows of a run in which generator and server were on time, and the start of the stall (perf_counter seconds).
    Every attempt has other arrivals.
    """
    reason: str | None = None
    for attempt in range(_ATTEMPTS):
        stall_at_s = time.perf_counter() + _STARTED_S + (stall_after_s or 0)
        if stall_after_s is not None:
            behaviour = behaviour.model_copy(update={"stall_at_s": stall_at_s})
        with fake_server(behaviour) as lane, tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.npz"
            recording = generator.run(
                GeneratorSpec(
                    lane=lane,
                    load=Load(scenario="truth", loop=loop),
                    bundle=None,
                    timeout_s=30,
                    warm_up=WarmUp(min_s=0, max_s=0),
                    seed=seed + 100 * attempt,
                    requests_file=file,
                )
            )
            rows = Requests.load(file).rows
        reason = recording.invalid_reason(open_loop=isinstance(loop, OpenLoop)) or _late_server(rows)
        if reason is None:
            return rows, stall_at_s
    raise BusyMachineError(f"{_ATTEMPTS} attempts failed; the last one: {reason}")


def _late_server(rows: Rows) -> str | None:
    """How late the fake server answered; None if it was on time."""
    late = float(np.percentile(rows["total_s"] - rows["queue_s"] - rows["inference_s"], 95))
    return f"5 % of the fake server's answers were sent {late * 1000:.1f} ms late" if late > _LATE_S else None


def _latency(rows: Rows) -> Seconds:
    latency: Seconds = (rows["done_ns"] - rows["scheduled_ns"]) / 1e9
    return latency


def _percentiles(values: Any) -> tuple[float, ...]:
    found: Sequence[float] = np.percentile(values, PERCENTILES).tolist()
    return tuple(found)
