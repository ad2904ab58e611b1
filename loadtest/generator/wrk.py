"""The same closed loop by wrk (https://github.com/wg/wrk), for comparison with the generator."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bundle.store import Bundle
from loadtest.errors import LoadtestError
from loadtest.generator.request_set import RequestSet
from loadtest.lanes.golden_requests import golden_requests
from loadtest.lanes.lane import Lane

INSTALL_WRK: Final = "wrk is not installed (Debian, Ubuntu: apt install wrk)"
_UNITS_S: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class ToolFigures:
    """What one tool measured.

    Args:
        failed: failed requests; by wrk: responses with another status than 2xx or 3xx, and socket errors.
        invalid_reason: why the figures must not be used; None if they are valid.
    """

    p50_s: float
    p99_s: float
    requests_per_s: float
    failed: int = 0
    invalid_reason: str | None = None


def wrk_is_installed() -> bool:
    """Whether `wrk` can be run."""
    return shutil.which("wrk") is not None


def run_wrk(
    lane: Lane, bundle: Bundle | None, concurrency: int, seconds: float, cores: Sequence[int] = (), threads: int = 1
) -> ToolFigures:
    """Send a bundle's golden requests with wrk. wrk checks the status of the responses, not the answers.

    Args:
        seconds: rounded to whole seconds, at least 1.
        cores: empty: any.
        threads: of wrk; at most one per connection.

    Raises:
        LoadtestError: wrk is not installed, or fails.
    """
    if not wrk_is_installed():
        raise LoadtestError(INSTALL_WRK)
    command = ["wrk", f"-t{min(threads, concurrency)}", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", "--latency"]
    if cores:
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_lua(_messages(lane, bundle)))
        script.flush()
        done = subprocess.run([*command, "-s", script.name, lane.url], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadtestError(f"wrk failed: {done.stderr or done.stdout}")
    try:
        return parse_wrk(done.stdout)
    except IndexError as error:
        raise LoadtestError(f"wrk's report lacks a line: {done.stdout}") from error


def parse_wrk(output: str) -> ToolFigures:
    """Parse wrk's report (`--latency`)."""

    def percentile(name: str) -> float:
        value, unit = re.findall(rf"^\s*{name}%\s+([\d.]+)(us|ms|s)$", output, re.MULTILINE)[0]
        return float(value) * _UNITS_S[unit]

    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", output)[0])
    failed = sum(int(count) for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", output))
    for line in re.findall(r"Socket errors: (.*)", output):
        failed += sum(int(count) for count in re.findall(r"\d+", line))
    return ToolFigures(percentile("50"), percentile("99"), rate, failed)


def _messages(lane: Lane, bundle: Bundle | None) -> list[bytes]:
    wire = lane.wire(bundle.manifest if bundle is not None else None)
    return [request.message for request in RequestSet(lane, golden_requests(lane, bundle), wire).requests]


def _lua(messages: Sequence[bytes]) -> str:
    """A script that sends the messages in turn."""
    literals = ",\n".join('"' + "".join(f"\\{byte:03d}" for byte in message) + '"' for message in messages)
    return (
        f"local messages = {{\n{literals}\n}}\nlocal number = 0\n"
        "request = function()\n  number = number % #messages + 1\n  return messages[number]\nend\n"
    )
