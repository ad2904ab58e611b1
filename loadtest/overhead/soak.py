"""Many requests to our service, some of them bad: none may be lost, and the memory must not grow. `make soak`.

    python -m loadtest.overhead.soak [BUNDLE] [--requests N] [--workers W]

5 % of the requests carry a damaged image, 5 % declare a body that is too large, and 5 % are aborted by the client. Exit
code 1 if a good request does not get its golden answer, if a bad one gets an unexpected status, if a worker process is
replaced, or if the memory of the service grows after the first fifth of the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bundle.errors import TridentError
from bundle.store import Bundle, find_bundle
from loadtest.errors import LoadtestError
from loadtest.generator.client import Generator
from loadtest.generator.request_set import KINDS
from loadtest.generator.requests_log import Requests
from loadtest.generator.spec import BadRequests, GeneratorSpec
from loadtest.lanes.lane import Lane
from loadtest.lanes.lineup import answer_tolerance
from loadtest.lanes.parity_gate import check_parity
from loadtest.load import ClosedLoop, Load, WarmUp
from loadtest.machine.resources import Processes, watching
from loadtest.overhead.running import START_TIMEOUT_S, free_port
from serving.processes import die_with_parent

SHARE: Final = 0.05  # of each kind of bad request
MEMORY_ALLOWANCE: Final = 0.05  # growth after the first fifth that counts as constant
MAX_BODY_BYTES: Final = 10 * 2**20
BAD: Final = BadRequests(damaged=SHARE, oversized=SHARE, aborted=SHARE, oversized_bytes=MAX_BODY_BYTES + 1)
_LOAD_S: Final = 2.0

console = Console(width=110)


@dataclass
class SoakResult:
    """What a soak found.

    Args:
        statuses: number of requests by kind and HTTP status; status 0: no response.
        memory_mib: peak memory of the service's processes in each load.
        problems: why the soak failed; empty if it passed.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    memory_mib: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """The number of requests."""
        return self.statuses.total()

    @property
    def early_mib(self) -> float:
        """Peak memory in the first fifth of the loads."""
        return max(self.memory_mib[: max(1, len(self.memory_mib) // 5)])

    @property
    def late_mib(self) -> float:
        """Peak memory after the first fifth of the loads."""
        return max(self.memory_mib[max(1, len(self.memory_mib) // 5) :], default=self.early_mib)


def main() -> None:
    """Run the soak and print the result."""
    arguments = _arguments()
    try:
        bundle = find_bundle(arguments.bundle)
        with _service(bundle, arguments.workers) as (lane, pid):
            columns = (TextColumn("soak"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console, transient=True) as progress:
                task = progress.add_task("soak", total=arguments.requests)
                started = time.perf_counter()
                result = soak(
                    lane, bundle, pid, arguments.requests, arguments.connections, arguments.seed,
                    on_load=lambda done: progress.update(task, completed=done),
                )  # fmt: skip
                seconds = time.perf_counter() - started
    except TridentError as error:
        sys.exit(f"error: {error}")
    _show(result, seconds)
    sys.exit(1 if result.problems else 0)


def soak(
    lane: Lane,
    bundle: Bundle,
    pid: int,
    requests: int,
    connections: int,
    seed: int = 0,
    on_load: Callable[[int], None] = lambda _: None,
) -> SoakResult:
    """Send at least `requests` requests, in closed loops of a few seconds.

    Args:
        pid: the root process of the service.
        on_load: called after each loop with the number of requests so far.
    """
    result = SoakResult()
    processes = _tree(pid)
    seconds, number = _LOAD_S / 4, 0
    with tempfile.TemporaryDirectory() as folder, Generator() as generator:
        while result.requests < requests:
            file = Path(folder) / "requests.npz"
            spec = GeneratorSpec(
                lane=lane,
                load=Load(scenario="soak", loop=ClosedLoop(concurrency=connections, duration_s=seconds)),
                bundle=bundle.path,
                timeout_s=30,
                warm_up=WarmUp(min_s=0, max_s=0),
                seed=seed + number,
                requests_file=file,
                bad_requests=BAD,
            )
            with watching(lane.name, {lane.name: Processes([pid])}, (generator.pid, os.getpid())) as watch:
                recording = generator.run(spec)
            _add(result, Requests.load(file))
            result.problems += [f"{count} x {error}" for error, count in recording.errors.items()]
            if watch.use is not None:
                result.memory_mib.append(watch.use.memory_mib)
            on_load(result.requests)
            if not result.requests:
                raise LoadtestError("no request was sent")
            rate = result.requests / (seconds + number * _LOAD_S)
            seconds = max(0.2, min(_LOAD_S, (requests - result.requests) / rate))
            number += 1
    if _tree(pid) != processes:
        result.problems.append("a worker process was replaced")
    if result.memory_mib and result.late_mib > result.early_mib * (1 + MEMORY_ALLOWANCE):
        result.problems.append("the memory grew")
    return result


def _add(result: SoakResult, requests: Requests) -> None:
    pairs = zip(requests.rows["kind"].tolist(), requests.rows["status"].tolist(), strict=True)
    result.statuses.update((KINDS[kind], status) for kind, status in pairs)


@contextmanager
def _service(bundle: Bundle, workers: int) -> Iterator[tuple[Lane, int]]:
    """Start our service; yields its lane and the pid of its root process."""
    port = free_port()
    environment = os.environ | {
        "TRIDENT_MODELS": json.dumps([str(bundle.path)]),
        "TRIDENT_WORKERS": str(workers),
        "TRIDENT_PORTS__FASTAPI": str(port),
        "TRIDENT_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    }
    service = subprocess.Popen(
        [sys.executable, "-m", "serving.fastapi_server"],
        env=environment,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    manifest = bundle.manifest
    lane = Lane(
        name="trident",
        server="fastapi",
        url=f"http://127.0.0.1:{port}",
        dialect="fastapi",
        model=manifest.model,
        version=manifest.version,
        tolerance=answer_tolerance(manifest),
    )
    try:
        _wait_until_ready(lane, bundle, service)
        yield lane, service.pid
    finally:
        service.terminate()
        service.wait(60)


def _wait_until_ready(lane: Lane, bundle: Bundle, service: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while service.poll() is None and time.monotonic() < deadline:
        if not check_parity(lane, bundle).faults:
            return
        time.sleep(0.2)
    raise LoadtestError("the service did not start; `python -m serving.fastapi_server` shows why")


def _tree(pid: int) -> list[int]:
    """The processes of the service."""
    return sorted([pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))])


def _show(result: SoakResult, seconds: float) -> None:
    console.print(f"{result.requests} requests in {seconds:.0f} s")
    for (kind, status), count in sorted(result.statuses.items()):
        console.print(f"  {kind}: {status or 'no response'}: {count}")
    if result.memory_mib:
        console.print(
            f"peak memory of the service: {result.early_mib:.1f} MiB in the first fifth, {result.late_mib:.1f} MiB afterwards"
        )
    for problem in result.problems[:10]:
        console.print(f"[red]{problem}[/]")
    console.print("[green]passed[/]" if not result.problems else f"[red]FAILED: {len(result.problems)} problem(s)[/]")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", help="MODEL, MODEL:VERSION or a folder; default: the newest bundle")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
