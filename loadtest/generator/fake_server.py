"""A server with known service times: one worker, first come first served. Also the null target.

    python -m loadtest.generator.fake_server '{"service": "exponential", "mean_s": 0.005}'     (prints its port)

It has a virtual clock: a request is done at max(arrival, end of the previous request) + service time, however late the
operating system wakes the process, so delays do not add up. From `stall_at_s` (monotonic clock) on, no service starts for
`stall_s`, as in a garbage collection. Server-Timing of every answer holds its queue and service time.
"""

import asyncio
import contextlib
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from loadtest.lanes.golden_requests import NULL_ANSWER
from loadtest.lanes.lane import Lane
from serving.processes import die_with_parent

_WRONG_ANSWER = NULL_ANSWER.replace(b'"class_id":0', b'"class_id":1')
_DRAWN = 65_536


class Behaviour(BaseModel):
    """What the server does.

    Args:
        stall_at_s: start of the stall, by the monotonic clock, which all processes share.
        wrong_after: number of requests after which the answers are wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: Literal["none", "deterministic", "exponential"] = "none"
    mean_s: float = Field(default=0.005, gt=0)
    seed: int = 0
    stall_at_s: float | None = None
    stall_s: float = 1.0
    wrong_after: int | None = None


@contextmanager
def fake_server(behaviour: Behaviour, cores: Sequence[int] = ()) -> Iterator[Lane]:
    """Start a fake server; yields its lane. It stops with the block, or with this process."""

    def prepare() -> None:
        die_with_parent()
        if cores:
            os.sched_setaffinity(0, cores)

    command = [sys.executable, "-m", __name__, behaviour.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=prepare) as process:
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            yield Lane(name=behaviour.service, server="null", url=url, dialect="null", model="null", tolerance=0,
                       pids=(process.pid,))  # fmt: skip
        finally:
            process.kill()


class _Queue:
    """The worker's queue: computes when each request is done."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        draw = np.random.default_rng(behaviour.seed)
        exponential = behaviour.service == "exponential"
        self._times = (
            draw.exponential(behaviour.mean_s, _DRAWN) if exponential else np.full(_DRAWN, behaviour.mean_s)
        ).tolist()
        self._free_at = 0.0
        self.served = 0

    def enter(self, now: float) -> tuple[float, float, float]:
        """Add a request. Returns when it will be done, its waiting time and its service time, in seconds."""
        start = max(now, self._free_at)
        stall_at_s = self._behaviour.stall_at_s
        if stall_at_s is not None and 0 <= start - stall_at_s < self._behaviour.stall_s:
            start = stall_at_s + self._behaviour.stall_s
        service = self._times[self.served % _DRAWN]
        self.served += 1
        self._free_at = start + service
        return self._free_at, start - now, service


class _Connection(asyncio.Protocol):
    def __init__(self, behaviour: Behaviour, queue: _Queue) -> None:
        self._behaviour = behaviour
        self._queue = queue
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        start = head.lower().find(b"content-length:")
        length = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        if len(body) < length:
            return
        self._buffer = body[length:]
        if self._behaviour.service == "none":
            self._queue.served += 1
            self._answer("")
            return
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        done, waits, served = self._queue.enter(arrived)
        loop.call_at(done, self._answer_timed, arrived, waits, served)

    def _answer_timed(self, arrived: float, waits: float, served: float) -> None:
        total = asyncio.get_running_loop().time() - arrived
        times = zip(("queue", "inference", "total"), (waits, served, total), strict=True)
        stages = ", ".join(f"{stage};dur={seconds * 1000:.4f}" for stage, seconds in times)
        self._answer(f"Server-Timing: {stages}\r\n")

    def _answer(self, timing: str) -> None:
        assert self._transport is not None
        wrong_after = self._behaviour.wrong_after
        body = NULL_ANSWER if wrong_after is None or self._queue.served <= wrong_after else _WRONG_ANSWER
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        if not self._transport.is_closing():
            self._transport.write(f"{head}{timing}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def _precise_loop() -> asyncio.AbstractEventLoop:
    """An asyncio loop on select: its timers are exact to 0.1 ms; those of epoll and uvloop to 1 ms."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _serve(behaviour: Behaviour) -> None:
    queue = _Queue(behaviour)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(behaviour, queue), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    behaviour = Behaviour.model_validate_json(sys.argv[1])
    with contextlib.suppress(KeyboardInterrupt):
        if behaviour.service == "none":
            import uvloop

            uvloop.run(_serve(behaviour))
        else:
            with asyncio.Runner(loop_factory=_precise_loop) as runner:
                runner.run(_serve(behaviour))


if __name__ == "__main__":
    main()
