"""Take turns on one core: the ceiling, our service, plain FastAPI, mosec, LitServe, BentoML. `make bench-overhead`.

    python -m loadtest.overhead.run [BUNDLE] [--peers PYTHON] [--rounds N] [--seconds S] [--concurrency 1,16,32]
    [--paced 0.7]

Every server gets one core, the load generator another; those that are not measured are stopped (SIGSTOP), so that they
take no time of the core. In each round all are measured, in a new random order. The ceiling is measured before and after
every turn of a server, whose ratio is to the mean of these two: what the machine does to one, it does to the other.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import psutil
from rich.console import Console
from rich.table import Table

from bundle.store import Bundle, find_bundle
from loadtest.environment import describe_environment
from loadtest.overhead.closed_loop import Call, Measured, closed_loop, paced
from loadtest.overhead.contestants import TRIDENT, Contestant, contestants
from serving.processes import die_with_parent

WARMUP_S: Final = 0.3
START_TIMEOUT_S: Final = 120.0

console = Console(width=110)


@dataclass
class Figures:
    """One contestant's runs. By concurrency: requests/s and ratio to the ceiling per round, and all latencies."""

    per_second: dict[int, list[float]] = field(default_factory=dict)
    ratio: dict[int, list[float]] = field(default_factory=dict)
    latencies: dict[int, list[float]] = field(default_factory=dict)

    def add(self, concurrency: int, measured: Measured, ceiling: float) -> None:
        """One run."""
        self.per_second.setdefault(concurrency, []).append(measured.per_second)
        self.ratio.setdefault(concurrency, []).append(measured.per_second / ceiling)
        self.latencies.setdefault(concurrency, []).extend(measured.latencies)


def main() -> None:
    """Measure and print."""
    options = _arguments()
    bundle = find_bundle(options.bundle)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("this needs two cores: one for the server, one for the load")
    server_core, load_core = cores[0], cores[-1]
    os.sched_setaffinity(0, {load_core})
    image = bundle.golden_inputs()[0][1]
    golden = bundle.golden_probabilities()[0]
    label = bundle.manifest.labels[int(golden.argmax())]

    with contextlib.ExitStack() as stack:
        calls: dict[str, tuple[Call, subprocess.Popen[bytes]]] = {}
        for contestant in contestants(bundle, options.peers):
            if contestant.name not in (options.only or [contestant.name]):
                continue
            with console.status(f"starting {contestant.name}"):
                calls[contestant.name] = stack.enter_context(_running(contestant, image, label, server_core))
        ceiling = stack.enter_context(_ceiling(bundle, image, server_core))
        figures, ceilings = _rounds(options, calls, ceiling)
        pace = _paced_latency(options, calls[TRIDENT], figures[TRIDENT]) if options.paced and TRIDENT in calls else None
    _show(options, bundle, figures, ceilings, pace)


def _rounds(
    options: argparse.Namespace,
    calls: dict[str, tuple[Call, subprocess.Popen[bytes]]],
    ceiling: Callable[[float], dict[str, float]],
) -> tuple[dict[str, Figures], list[dict[str, float]]]:
    shuffled = random.Random(options.seed)  # noqa: S311 - an order, not a secret
    figures = {name: Figures() for name in calls}
    ceilings = [ceiling(options.seconds / 2)]
    for round_ in range(options.rounds):
        for name in shuffled.sample(list(calls), len(calls)):
            call, process = calls[name]
            for concurrency in options.concurrency:
                with console.status(f"round {round_ + 1} of {options.rounds}: {name}"), _awake(process):
                    measured = closed_loop(call, concurrency, WARMUP_S, options.seconds)
                if measured.fault:
                    sys.exit(f"{name} at concurrency {concurrency}: {measured.fault}")
                ceilings.append(ceiling(options.seconds / 2))
                figures[name].add(concurrency, measured, (ceilings[-2]["single"] + ceilings[-1]["single"]) / 2)
    return figures, ceilings


def _paced_latency(
    options: argparse.Namespace, trident: tuple[Call, subprocess.Popen[bytes]], figures: Figures
) -> Measured:
    """Latency at a share of the highest rate seen."""
    call, process = trident
    highest = max(median(rates) for rates in figures.per_second.values())
    with _awake(process):
        found = paced(call, highest * options.paced, 64, WARMUP_S, max(10.0, options.seconds * options.rounds))
    if found.fault:
        sys.exit(f"{TRIDENT} at a constant rate: {found.fault}")
    return found


@contextlib.contextmanager
def _running(
    contestant: Contestant, image: bytes, label: str, core: int
) -> Iterator[tuple[Call, subprocess.Popen[bytes]]]:
    """A server on its core; stopped at the start, so that it takes no time until it is its turn."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | contestant.environment(port)

    def pin() -> None:
        die_with_parent()
        os.sched_setaffinity(0, {core})

    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            contestant.command(port), env=environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=pin
        )
        try:
            call = Call(port, contestant.request(port, image), label)
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _answers(call):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{contestant.name} did not start:\n{log.read()[-3000:].decode(errors='replace')}")
                time.sleep(0.2)
            _signal(process, signal.SIGSTOP)
            yield call, process
        finally:
            tree = psutil.Process(process.pid).children(recursive=True)
            _signal(process, signal.SIGCONT)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            _signal(process, signal.SIGKILL)
            for orphan in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    orphan.kill()
            process.wait()


def _answers(call: Call) -> bool:
    try:
        measured = closed_loop(call, 1, 0, 0.2)
    except OSError:
        return False
    return bool(measured.latencies) and not measured.fault


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    """To the server and all its descendants: some servers put theirs into sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in (*parent.children(recursive=True), parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)


@contextlib.contextmanager
def _awake(process: subprocess.Popen[bytes]) -> Iterator[None]:
    _signal(process, signal.SIGCONT)
    try:
        yield
    finally:
        _signal(process, signal.SIGSTOP)


@contextlib.contextmanager
def _ceiling(bundle: Bundle, image: bytes, core: int) -> Iterator[Callable[[float], dict[str, float]]]:
    """A function that measures the ceiling for so many seconds, on the servers' core."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(image)
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.ceiling", str(bundle.path), file.name],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None

        def measure(seconds: float) -> dict[str, float]:
            asked.write(f"{seconds}\n")
            asked.flush()
            found: dict[str, float] = json.loads(answers.readline())
            return found

        try:
            yield measure
        finally:
            asked.close()  # it ends when there is nothing more to read
            process.wait()
            answers.close()


def _show(
    options: argparse.Namespace,
    bundle: Bundle,
    figures: dict[str, Figures],
    ceilings: Sequence[dict[str, float]],
    pace: Measured | None,
) -> None:
    machine = describe_environment()
    single, batched = (median(ceiling[key] for ceiling in ceilings) for key in ("single", "batched"))
    console.print(
        f"{bundle.name} on one core of {machine.cpu}: decode and model in a plain loop {single:.0f} images/s "
        f"(in batches {batched:.0f})"
    )
    table = Table("server", "p50 ms, alone", box=None, header_style="dim")
    crowds = [concurrency for concurrency in options.concurrency if concurrency > 1]
    for concurrency in crowds:
        for column in (f"requests/s at {concurrency}", "of the ceiling", "lowest, highest"):
            table.add_column(column, justify="right")
    for name, found in figures.items():
        alone = Measured(latencies=found.latencies.get(1, []))
        cells = [f"{alone.percentile(50) * 1000:.2f}" if alone.latencies else "-"]
        for concurrency in crowds:
            ratios = found.ratio[concurrency]
            cells += [
                f"{median(found.per_second[concurrency]):.0f}",
                f"{median(ratios):.2f}",
                f"{min(ratios):.2f}, {max(ratios):.2f}",
            ]
        table.add_row(name, *cells)
    console.print(table)
    peers = {name: found for name, found in figures.items() if name != TRIDENT}
    for concurrency in crowds if 0 < len(peers) < len(figures) else ():
        best = max(peers, key=lambda name: median(peers[name].ratio[concurrency]))
        factor = median(figures[TRIDENT].ratio[concurrency]) / median(peers[best].ratio[concurrency])
        console.print(f"at {concurrency}: {factor:.2f} times the best peer, {best}")
    if pace is not None:
        rate = len(pace.latencies) / pace.seconds
        p50, p99 = pace.percentile(50), pace.percentile(99)
        console.print(
            f"trident at {options.paced:.0%} load ({rate:.0f} requests/s at a constant rate): p50 {p50 * 1000:.2f} ms, "
            f"p99 {p99 * 1000:.2f} ms, p99/p50 {p99 / p50:.2f}"
        )
    console.print(
        "the ceiling is the loop that takes images one by one; LitServe and BentoML get theirs as base64 in JSON\n"
        f"{options.rounds} rounds of {options.seconds:g} s, order by seed {options.seed}; medians over the rounds"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", help="MODEL, MODEL:VERSION or a folder; default: the newest bundle")
    parser.add_argument("--peers", type=Path, help="a Python with mosec, litserve and bentoml")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="names of servers; default: all")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16, 32])
    parser.add_argument("--paced", type=float, default=0.7, help="share of the highest rate for the paced run; 0: none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
