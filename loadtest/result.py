"""A benchmark's result: everything that was asked, measured and needed to judge it, as one JSON file."""

import os
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from loadtest.environment import Environment
from loadtest.errors import ResultError
from loadtest.recording import Recording
from loadtest.scenarios.load import Load
from loadtest.settings import BenchSettings
from loadtest.targets import Target

RESULTS: Final = Path("artifacts/results")
RESULT_FILE: Final = "result.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lane(_Part):
    """One target, and how its answers compared with the golden ones before it was timed. A lane with faults was not
    timed.
    """

    target: Target
    golden_pictures: int
    max_abs_difference: float | None
    faults: tuple[str, ...]

    @property
    def name(self) -> str:
        """As in tables."""
        return self.target.lane


class Run(_Part):
    """One load on one lane, once."""

    lane: str
    load: Load
    round: int
    started: datetime
    recording: Recording


class Result(_Part):
    """One benchmark. `serving` are the servers' settings, where they are known."""

    schema_version: Literal[1] = 1
    created: datetime
    bundle: str
    settings: BenchSettings
    serving: dict[str, Any] | None
    generator_cores: tuple[int, ...]
    environment: Environment
    lanes: tuple[Lane, ...]
    runs: tuple[Run, ...]

    @property
    def faults(self) -> list[str]:
        """Why this result, or a part of it, must not be believed."""
        wrong = [f"{lane.name} was not timed: {lane.faults[0]}" for lane in self.lanes if lane.faults]
        lagging = [
            f"{run.lane}, {run.load.scenario} x {run.load.concurrency}, round {run.round + 1}: {run.recording.generator.fault}"
            for run in self.runs
            if run.recording.generator.fault
        ]
        return wrong + lagging


def write_result(result: Result, folder: Path) -> Path:
    """Write `folder`/result.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULT_FILE
    temporary = path.with_name(f".{RESULT_FILE}.{os.getpid()}")
    temporary.write_text(result.model_dump_json(indent=1) + "\n")
    temporary.replace(path)
    return path


def read_result(path: Path) -> Result:
    """Read a result file, or the one in a folder.

    Raises:
        ResultError: it is not there, or not a result.
    """
    path = path / RESULT_FILE if path.is_dir() else path
    try:
        return Result.model_validate_json(path.read_text())
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}; `trident bench` makes results") from error
    except ValidationError as error:
        raise ResultError(f"{path} is not a result of this version: {error.errors()[0]['msg']}") from error


def latest_result(root: Path = RESULTS) -> Path:
    """The folder of the newest result.

    Raises:
        ResultError: there is none.
    """
    found = sorted(root.glob(f"*/{RESULT_FILE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ResultError(f"no result below {root}; `trident bench` makes one")
    return found[-1].parent
