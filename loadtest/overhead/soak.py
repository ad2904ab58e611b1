"""Many requests, some of them bad: nothing may be lost, leak or fail. `make soak`.

    python -m loadtest.overhead.soak [BUNDLE] [--requests N] [--workers W]

Of the requests, 5 % carry a damaged image, 5 % declare a body that is too large, and 5 % are cancelled by hanging up
after a moment. Exit code 1 if a good one is answered wrongly, if a bad one gets another status than it should, if a
worker process is replaced, or if the memory of the service grows after the first fifth.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import httpx
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bundle.store import Bundle, find_bundle
from loadtest.overhead.closed_loop import post
from serving.processes import die_with_parent

SHARE: Final = 0.05  # of each kind of bad request
MEMORY_ALLOWANCE: Final = 0.05  # growth after the first fifth that counts as flat
MAX_BODY_BYTES: Final = 10 * 2**20
EXPECTED: Final = {"damaged": {400, 415, 422}, "oversized": {413}}

console = Console(width=110)


@dataclass
class Tally:
    """What came of the requests."""

    done: int = 0
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # bytes, once per percent


def main() -> None:
    """Run it and judge."""
    options = _arguments()
    bundle = find_bundle(options.bundle)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "TRIDENT_MODELS": json.dumps([str(bundle.path)]),
        "TRIDENT_WORKERS": str(options.workers),
        "TRIDENT_PORTS__FASTAPI": str(port),
        "TRIDENT_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    }
    service = subprocess.Popen(
        [sys.executable, "-m", "serving.fastapi_server"],
        env=environment,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    try:
        _wait_until_ready(port, service)
        workers = _tree(service.pid)
        started = time.perf_counter()
        tally = asyncio.run(_soak(bundle, port, service.pid, options))
        seconds = time.perf_counter() - started
        if _tree(service.pid) != workers:
            tally.faults.append("a worker process was replaced")
    finally:
        service.terminate()
        service.wait(60)
    sys.exit(_judge(tally, seconds))


async def _soak(bundle: Bundle, port: int, pid: int, options: argparse.Namespace) -> Tally:
    tally = Tally()
    random_ = random.Random(options.seed)  # noqa: S311 - a mixture, not a secret
    columns = (TextColumn("soak"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("soak", total=options.requests)
        every = max(1, options.requests // 100)

        def one_more() -> bool:
            if tally.done >= options.requests:
                return False
            tally.done += 1
            if tally.done % every == 0:
                progress.update(task, completed=tally.done)
                tally.memory.append(sum(psutil.Process(one).memory_info().rss for one in _tree(pid)))
            return True

        users = [_User(bundle, port, tally, random_) for _ in range(options.connections)]
        await asyncio.gather(*(user.run(one_more) for user in users))
    return tally


class _User:
    """One client with one connection, which it opens anew whenever it was closed."""

    def __init__(self, bundle: Bundle, port: int, tally: Tally, random_: random.Random) -> None:
        self._port = port
        self._tally = tally
        self._random = random_
        golden = bundle.golden_probabilities()
        self._images = [
            (post(port, "/predict", "image/png", data), data, int(row.argmax()), float(row.max()))
            for (_, data), row in zip(bundle.golden_inputs(), golden, strict=True)
        ]
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, one_more) -> None:  # type: ignore[no-untyped-def]
        """Until there are no more to send."""
        while one_more():
            kind = self._random.random()
            try:
                if kind < SHARE:
                    await self._damaged()
                elif kind < 2 * SHARE:
                    await self._oversized()
                elif kind < 3 * SHARE:
                    await self._cancelled()
                else:
                    await self._good()
            except (OSError, EOFError, ValueError) as error:
                self._tally.faults.append(f"{type(error).__name__}: {error}")
                self._hang_up()
        self._hang_up()

    async def _good(self) -> None:
        request, _, class_id, probability = self._random.choice(self._images)
        status, body = await self._ask(request)
        self._tally.statuses["good", status] += 1
        best = json.loads(body)["predictions"][0] if status == 200 else {}
        if best.get("class_id") != class_id or abs(best["probability"] - probability) > 1e-4:
            self._tally.faults.append(f"a good image: {status} {body[:200]!r}")

    async def _damaged(self) -> None:
        _, data, _, _ = self._random.choice(self._images)
        cut = data[: self._random.randrange(1, len(data) // 2)]
        self._count("damaged", *await self._ask(post(self._port, "/predict", "image/png", cut)))

    async def _oversized(self) -> None:
        head = post(self._port, "/predict", "image/png", b"").replace(
            b": 0\r\n\r\n", b": %d\r\n\r\n" % (MAX_BODY_BYTES + 1)
        )
        self._count("oversized", *await self._ask(head + bytes(1000)))
        self._hang_up()  # the rest of the body is not sent

    async def _cancelled(self) -> None:
        _, writer = await self._connection()
        writer.write(self._random.choice(self._images)[0])
        await asyncio.sleep(self._random.random() * 0.002)
        self._hang_up()
        self._tally.statuses["cancelled", 0] += 1

    def _count(self, kind: str, status: int, body: bytes) -> None:
        self._tally.statuses[kind, status] += 1
        if status not in EXPECTED[kind]:
            self._tally.faults.append(f"{kind}: {status} {body[:200]!r}")

    async def _ask(self, request: bytes) -> tuple[int, bytes]:
        reader, writer = await self._connection()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head.split(b" ", 2)[1]), await reader.readexactly(length)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self._reader, self._writer

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def _judge(tally: Tally, seconds: float) -> int:
    """Print; the exit code."""
    console.print(f"{tally.done} requests in {seconds:.0f} s")
    for (kind, status), count in sorted(tally.statuses.items()):
        console.print(f"  {kind}: {status or 'hung up'}: {count}")
    early, late = max(tally.memory[: len(tally.memory) // 5]), max(tally.memory[len(tally.memory) // 5 :])
    console.print(
        f"memory of the service: {early / 2**20:.1f} MiB in the first fifth, {late / 2**20:.1f} MiB at most later"
    )
    if late > early * (1 + MEMORY_ALLOWANCE):
        tally.faults.append("the memory grew")
    for fault in tally.faults[:10]:
        console.print(f"[red]{fault}[/]")
    console.print("[green]nothing lost[/]" if not tally.faults else f"[red]{len(tally.faults)} faults[/]")
    return 1 if tally.faults else 0


def _tree(pid: int) -> list[int]:
    """The processes of the service."""
    return sorted([pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))])


def _wait_until_ready(port: int, service: "subprocess.Popen[bytes]") -> None:
    while service.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    sys.exit("the service did not start; `python -m serving.fastapi_server` says why")


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
