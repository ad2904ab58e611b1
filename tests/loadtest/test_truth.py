"""Is the load test right? Theory against simulation, and both against measurements of servers with known behaviour."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from loadtest.cores import split_cores
from loadtest.generator.client import Generator
from loadtest.generator.wrk import parse_wrk, wrk_is_installed
from loadtest.truth.against_wrk import take_turns
from loadtest.truth.measure import BusyMachineError, measure_queue, measure_stall
from loadtest.truth.queueing import Service, mean_wait, wait_percentile, waits

_TIMERS_S = 0.002  # that much, a tenth of a service, idle cores and timers may cost on a shared machine


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    with Generator() as generator:
        yield generator


@pytest.mark.parametrize("service", ["exponential", "deterministic"])
@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_theory_and_simulation_agree(service: Service, load: float) -> None:
    draw = np.random.default_rng(0)
    count = 400_000
    arrivals = np.cumsum(draw.exponential(1 / load, count))
    services = draw.exponential(1.0, count) if service == "exponential" else np.ones(count)
    simulated = waits(arrivals, services)
    assert simulated.mean() == pytest.approx(mean_wait(service, 1.0, load), rel=0.1)  # waits are correlated
    assert np.percentile(simulated, 99) == pytest.approx(wait_percentile(service, 1.0, load, 99), rel=0.1)


def test_a_stall_delays_all_that_come_meanwhile() -> None:
    waited = waits(np.array([0.0, 1.0, 1.5, 2.5]), np.full(4, 0.1), stall=(0.9, 2.0))
    assert waited == pytest.approx([0, 1.0, 0.6, 0])


def test_wrk_is_read() -> None:
    text = """
  Latency Distribution
     50%   82.00us
     75%    0.10ms
     90%    1.20ms
     99%    6.80ms
  17233 requests in 3.00s, 3.50MB read
Requests/sec:   5746.03
"""
    seen = parse_wrk(text)
    assert (seen.p50_s, seen.p99_s, seen.requests_per_s) == pytest.approx((82e-6, 6.8e-3, 5746.03))


@pytest.mark.integration
@pytest.mark.serial
@pytest.mark.parametrize("seconds", [8, pytest.param(14, marks=pytest.mark.slow)])
def test_an_open_loop_sees_a_stall_as_it_was_and_a_closed_loop_does_not(seconds: float, generator: Generator) -> None:
    """Coordinated omission: for a second nobody is answered. One closed-loop client notices once."""

    def check() -> None:
        found = measure_stall(generator, seconds)
        assert found.open_loop == pytest.approx(found.simulated, rel=0.05, abs=_TIMERS_S)
        assert found.simulated[-1] > 0.8
        for closed, truth in list(zip(found.closed_loop, found.simulated, strict=True))[2:]:
            assert closed < truth / 2

    _best_of_three(check)


@pytest.mark.integration
@pytest.mark.serial
@pytest.mark.parametrize(
    ("service", "seconds"), [("deterministic", 8), pytest.param("exponential", 15, marks=pytest.mark.slow)]
)
def test_waiting_times_are_those_of_theory(service: Service, seconds: float, generator: Generator) -> None:
    def check() -> None:
        found = measure_queue(generator, service, 0.7, seconds)
        for measured, simulated, theory in (found.mean, found.p99):
            assert measured == pytest.approx(simulated, rel=0.05, abs=_TIMERS_S)
            assert measured == pytest.approx(theory, rel=0.6)  # a run of 500 requests is a small sample of a queue

    _best_of_three(check)


def _best_of_three(check: Callable[[], None]) -> None:
    """Pass if one of three measurements passes: other programs can spoil a measurement, but not improve it."""
    for last in (False, False, True):
        try:
            check()
        except (AssertionError, BusyMachineError):
            if last:
                raise
        else:
            return


@pytest.mark.integration
@pytest.mark.serial
@pytest.mark.skipif(not wrk_is_installed(), reason="wrk is not installed (apt install wrk)")
def test_the_generator_agrees_with_wrk() -> None:
    """p50 of a lone request within 0.1 ms."""
    seen = take_turns(1, 5, 1.0, *split_cores())
    assert min(abs(ours.p50_s - wrk.p50_s) for wrk, ours in seen) < 0.0001
