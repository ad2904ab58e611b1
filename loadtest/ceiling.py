"""The in-process ceiling of a runtime, measured like a lane: once per round, on the servers' cores."""

import json
import os
import subprocess
import sys

from pydantic import BaseModel, ConfigDict, Field

from bundle.store import Bundle
from loadtest.errors import LoadtestError
from serving.processes import die_with_parent


class CeilingSpec(BaseModel):
    """What a plain loop on the servers' cores would run. `workers` copies of `threads` threads fit on the cores at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str
    precision: str
    threads: int = Field(ge=1)
    workers: int = Field(default=1, ge=1)
    max_batch_size: int = Field(default=8, ge=1)
    cores: tuple[int, ...] = ()


class Ceiling(BaseModel):
    """Images per second, one by one (`single`) and in batches, of `workers` loops side by side; `best` is the higher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: CeilingSpec
    round: int
    single: float
    batched: float

    @property
    def best(self) -> float:
        """What a server cannot exceed on these cores."""
        return max(self.single, self.batched)


def measure_ceiling(spec: CeilingSpec, bundle: Bundle, seconds: float, round_: int) -> Ceiling:
    """Run the loops in processes of their own.

    Raises:
        LoadtestError: a loop failed; the message holds its last words.
    """

    def prepare() -> None:
        die_with_parent()
        if spec.cores:
            os.sched_setaffinity(0, spec.cores)

    command = [sys.executable, "-m", "serving.runtimes.ceiling", str(bundle.path), spec.runtime, spec.precision]
    command += [str(spec.threads), str(spec.max_batch_size), str(seconds)]
    environment = os.environ | {"OMP_NUM_THREADS": str(spec.threads)}
    loops = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare
        )
        for _ in range(spec.workers)
    ]
    rates = [_rates(loop) for loop in loops]
    return Ceiling(
        spec=spec,
        round=round_,
        single=sum(rate["single"] for rate in rates),
        batched=sum(rate["batched"] for rate in rates),
    )


def _rates(loop: subprocess.Popen[str]) -> dict[str, float]:
    output, errors = loop.communicate()
    if loop.returncode:
        raise LoadtestError(f"the in-process measurement failed: {errors[-1500:]}")
    rates: dict[str, float] = json.loads(output.splitlines()[-1])
    return rates
