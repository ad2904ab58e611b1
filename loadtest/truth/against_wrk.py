"""The generator against wrk (Debian's package `wrk`) on the null target, on the same core, taking turns."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

from loadtest.errors import LoadtestError
from loadtest.generator.client import Generator
from loadtest.generator.fake_server import Behaviour, fake_server
from loadtest.generator.spec import GeneratorSpec
from loadtest.load import ClosedLoop, Load, WarmUp
from loadtest.targets import NULL_IMAGE, Target

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Seen:
    """What one tool says of the null target."""

    p50_s: float
    p99_s: float
    requests_per_s: float


def wrk_is_here() -> bool:
    """Whether `wrk` can be run."""
    return shutil.which("wrk") is not None


def take_turns(
    concurrency: int, rounds: int, seconds: float, server_cores: tuple[int, ...], cores: tuple[int, ...]
) -> list[tuple[Seen, Seen]]:
    """wrk's and the generator's view, round by round.

    Raises:
        LoadtestError: wrk is not there, or fails.
    """
    if not wrk_is_here():
        raise LoadtestError("wrk is not installed (Debian, Ubuntu: apt install wrk)")
    with fake_server(Behaviour(), server_cores) as target, Generator() as generator:
        return [
            (_wrk(target, concurrency, seconds, cores), _ours(generator, target, concurrency, seconds, cores))
            for _ in range(rounds)
        ]


def _wrk(target: Target, concurrency: int, seconds: float, cores: tuple[int, ...]) -> Seen:
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds:g}s", "--latency"]
    if cores:
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f'wrk.method = "POST"\nwrk.body = string.rep("\\0", {len(NULL_IMAGE)})\n')
        script.flush()
        done = subprocess.run(
            [*command, "-s", script.name, f"{target.url}/predict"], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise LoadtestError(f"wrk failed: {done.stderr or done.stdout}")
    return parse_wrk(done.stdout)


def parse_wrk(said: str) -> Seen:
    """wrk's report (`--latency`)."""

    def percentile(name: str) -> float:
        value, unit = re.findall(rf"^\s*{name}%\s+([\d.]+)(us|ms|s)$", said, re.MULTILINE)[0]
        return float(value) * _UNITS_S[unit]

    return Seen(percentile("50"), percentile("99"), float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0]))


def _ours(generator: Generator, target: Target, concurrency: int, seconds: float, cores: tuple[int, ...]) -> Seen:
    spec = GeneratorSpec(
        target=target,
        load=Load(scenario="truth", loop=ClosedLoop(concurrency=concurrency, duration_s=seconds)),
        bundle=None,
        timeout_s=10,
        warm_up=WarmUp(min_s=0.3, max_s=0.3),
        cores=cores,
    )
    recording = generator.run(spec)
    return Seen(recording.percentile_ms(50) / 1000, recording.percentile_ms(99) / 1000, recording.requests_per_s)
