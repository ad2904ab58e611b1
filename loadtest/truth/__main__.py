"""Compare the load test with simulation, theory and wrk: python -m loadtest.truth [stall] [queues] [wrk] [--seconds S].

`make truth` runs it.
"""

import argparse
import sys
from statistics import median

from rich.console import Console
from rich.table import Table

from loadtest.cores import split_cores
from loadtest.errors import LoadtestError
from loadtest.generator.client import Generator
from loadtest.generator.wrk import INSTALL_WRK, wrk_is_installed
from loadtest.machine.environment import describe_environment
from loadtest.truth.against_wrk import take_turns
from loadtest.truth.measure import PERCENTILES, measure_queue, measure_stall
from loadtest.truth.queueing import Service

_LOADS = (0.3, 0.5, 0.7, 0.85)
_SERVICES: tuple[Service, ...] = ("exponential", "deterministic")
_ROUNDS = 5
console = Console(width=130)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["stall", "queues", "wrk", []], help="default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a run of `stall` and `queues`")
    arguments = parser.parse_args()
    parts = arguments.parts or ["stall", "queues", "wrk"]
    console.print(f"on {describe_environment().cpu}")
    try:
        for part in parts:
            {"stall": _stall, "queues": _queues, "wrk": _wrk}[part](arguments.seconds)
    except LoadtestError as error:
        sys.exit(f"error: {error}")


def _stall(seconds: float) -> None:
    with console.status("stall of 1 s"), Generator() as generator:
        found = measure_stall(generator, seconds)
    title = (
        f"service time 20 ms, 20 requests/s, one stall of 1 s; {found.requests} requests in {seconds:g} s: "
        f"latency in ms (of a single request: {found.single_s * 1000:.1f})"
    )
    table = _table(title, "", *(f"p{percentile:g}" for percentile in PERCENTILES))
    table.add_row("simulated", *(f"{value * 1000:.1f}" for value in found.simulated))
    for name, values in (("open loop", found.open_loop), ("closed loop", found.closed_loop)):
        pairs = zip(values, found.simulated, strict=True)
        table.add_row(name, *(f"{value * 1000:.1f} ({value / truth - 1:+.1%})" for value, truth in pairs))
    console.print(table)


def _queues(seconds: float) -> None:
    title = f"waiting time in ms; service time 20 ms, Poisson arrivals, {seconds:g} s each"
    columns = ("load", "requests", "transit", "mean", "simulated", "theory", "p99", "simulated", "theory")
    table = _table(title, "queue", *columns)
    with Generator() as generator:
        for service in _SERVICES:
            for load in _LOADS:
                with console.status(f"{service} service at load {load}"):
                    found = measure_queue(generator, service, load, seconds)
                times = [f"{value * 1000:.2f}" for value in (found.transit_s, *found.mean, *found.p99)]
                name = "M/M/1" if service == "exponential" else "M/D/1"
                table.add_row(name, f"{load}", str(found.requests), *times)
    console.print(table)
    console.print("simulated: Lindley's recursion over the same arrivals and service times; theory: of an infinite run")
    console.print("transit: latency of a single request without its service time; not part of the waiting times")


def _wrk(_: float) -> None:
    if not wrk_is_installed():
        console.print(f"\nwrk: skipped; {INSTALL_WRK}")
        return
    server_cores, cores = split_cores()
    title = (
        f"the null target, measured by wrk and by the generator on one core; {_ROUNDS} rounds of 2 s in turn, medians"
    )
    columns = ("p50 ms, wrk", "generator", "difference", "requests/s, wrk", "generator")
    table = _table(title, "concurrency", *columns)
    for concurrency in (1, 16):
        with console.status(f"concurrency {concurrency}"):
            figures = take_turns(concurrency, _ROUNDS, 2.0, server_cores, cores)
        wrk, generator = (median(pair[tool].p50_s for pair in figures) * 1000 for tool in (0, 1))
        rates = (median(pair[tool].requests_per_s for pair in figures) for tool in (0, 1))
        cells = [f"{wrk:.3f}", f"{generator:.3f}", f"{generator - wrk:+.3f}", *(f"{rate:.0f}" for rate in rates)]
        table.add_row(str(concurrency), *cells)
    console.print(table)


def _table(title: str, first: str, *columns: str) -> Table:
    console.print(f"\n{title}")  # a title of the table would wrap at the table's width
    table = Table(first, box=None, header_style="dim")
    for column in columns:
        table.add_column(column, justify="right")
    return table


if __name__ == "__main__":
    main()
