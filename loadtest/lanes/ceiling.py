"""The ceiling: decode and model in a loop without a server, on the servers' cores."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from bundle.store import Bundle
from loadtest.errors import LoadtestError
from serving.processes import die_with_parent


class CeilingSpec(BaseModel):
    """What the loops run: `workers` processes of `threads` threads, as many as the server has.

    Args:
        decoders: threads per process that decode while the model computes; 0: the model's thread decodes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str
    precision: str
    threads: int = Field(ge=1)
    workers: int = Field(default=1, ge=1)
    max_batch_size: int = Field(default=8, ge=1)
    cores: tuple[int, ...] = ()
    device: str = "cpu"
    decoders: int = Field(default=0, ge=0)


class Ceiling(BaseModel):
    """One round's ceiling in images per second, summed over the workers.

    Args:
        single: images one by one.
        batched: images in batches of `spec.max_batch_size`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: CeilingSpec
    round: int
    single: float
    batched: float

    @property
    def best(self) -> float:
        """The higher of the two: no server on these cores can exceed it."""
        return max(self.single, self.batched)


@dataclass(frozen=True)
class CeilingRates:
    """Images per second, one by one and in batches."""

    single: float
    batched: float


def measure_ceiling(spec: CeilingSpec, bundle: Bundle, seconds: float, round_: int) -> Ceiling:
    """Measure the ceiling once.

    Raises:
        LoadtestError: a loop failed; the message holds the end of its output.
    """
    with ceiling_loops(spec, bundle) as measure:
        rates = measure(seconds)
    return Ceiling(spec=spec, round=round_, single=rates.single, batched=rates.batched)


@contextmanager
def ceiling_loops(spec: CeilingSpec, bundle: Bundle) -> Iterator[Callable[[float], CeilingRates]]:
    """Start the loops, one process per worker. Yields a function that measures for a number of seconds, repeatedly if needed;
    in between, the processes wait and use no CPU.

    Raises:
        LoadtestError: a loop failed; the message holds the end of its output.
    """
    with ExitStack() as stack:
        loops = [stack.enter_context(_loop(spec, bundle)) for _ in range(spec.workers)]
        for loop in loops:
            loop.read()  # "ready": no loop measures while another one still loads

        def measure(seconds: float) -> CeilingRates:
            for loop in loops:
                loop.write(f"{seconds}\n")
            rates = [json.loads(loop.read()) for loop in loops]
            return CeilingRates(
                single=sum(rate["single"] for rate in rates), batched=sum(rate["batched"] for rate in rates)
            )

        yield measure


@dataclass(frozen=True)
class _Loop:
    """A process of `serving.runtimes.ceiling`."""

    process: "subprocess.Popen[str]"
    errors: IO[bytes]

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def read(self) -> str:
        """Read a line; an ended process has none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise LoadtestError(f"the ceiling failed: {self.errors.read().decode(errors='replace')[-1500:]}")
        return line


@contextmanager
def _loop(spec: CeilingSpec, bundle: Bundle) -> Iterator[_Loop]:
    def prepare() -> None:
        die_with_parent()
        if spec.cores:
            os.sched_setaffinity(0, spec.cores)

    command = [sys.executable, "-m", "serving.runtimes.ceiling", str(bundle.path), spec.runtime, spec.precision]
    command += [str(spec.threads), str(spec.max_batch_size), "--device", spec.device, "--decoders", str(spec.decoders)]
    environment = os.environ | {"OMP_NUM_THREADS": str(spec.threads)}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=prepare,
        ) as process,
    ):
        try:
            yield _Loop(process, errors)
        finally:
            process.kill()
