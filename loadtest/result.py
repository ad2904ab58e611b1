"""A benchmark's result: everything that was asked, measured and needed to judge it, as one JSON file."""

import os
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from loadtest.calibration import Calibration
from loadtest.ceiling import Ceiling, CeilingSpec
from loadtest.environment import Environment
from loadtest.errors import ResultError
from loadtest.gate import Lane
from loadtest.generator.recording import Recording
from loadtest.load import Load, OpenLoop
from loadtest.resources import DISTURBED_CORES, ResourceUse
from loadtest.settings import BenchSettings

RESULTS: Final = Path("artifacts/results")
RESULT_FILE: Final = "result.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Part):
    """One load on one lane, once. `server_stages_s`: mean seconds per stage as the server's own counters have it.

    `repeated`: the generator spoiled it, and it was done again.
    """

    lane: str
    load: Load
    round: int
    started: datetime
    recording: Recording
    resources: ResourceUse | None = None
    server_stages_s: dict[str, float] = {}
    requests_file: str | None = None
    repeated: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.lane}, {self.load.label}, round {self.round + 1}"

    @property
    def fault(self) -> str:
        """'' if the run is valid; else why its figures must not be used."""
        fault = self.recording.fault(open_loop=isinstance(self.load.loop, OpenLoop))
        if not fault and self.resources is not None and self.resources.not_idle:
            fault = f"others were not idle: {self.resources.not_idle}"
        return fault

    @property
    def remark(self) -> str:
        """What a reader should know, though it does not make the run invalid."""
        remarks = []
        if self.resources is not None and self.resources.other_cores > DISTURBED_CORES:
            remarks.append(f"other processes of the machine used {self.resources.other_cores:.1f} cores")
        if not self.recording.warm_up.stable:
            remarks.append(f"not stable after {self.recording.warm_up.seconds:.1f} s of warm-up")
        if self.recording.generator.waited_for_connection:
            remarks.append(f"{self.recording.generator.waited_for_connection} arrivals found every connection busy")
        return "; ".join(remarks)


class Result(_Part):
    """One benchmark. `serving` are the servers' settings by lane, where they are known."""

    schema_version: Literal[2] = 2
    created: datetime
    bundle: str
    settings: BenchSettings
    serving: dict[str, dict[str, Any]]
    ceiling_specs: dict[str, CeilingSpec] = {}
    server_cores: tuple[int, ...]
    generator_cores: tuple[int, ...]
    environment: Environment
    calibration: Calibration | None
    lanes: tuple[Lane, ...]
    ceilings: tuple[Ceiling, ...]
    runs: tuple[Run, ...]

    @property
    def valid_runs(self) -> list[Run]:
        """The runs whose figures may be used; probes are not among them."""
        return [run for run in self.runs if not run.fault and not run.load.probe]

    @property
    def faults(self) -> list[str]:
        """Why this result, or a part of it, must not be believed."""
        wrong = [f"{lane.name} was not timed: {lane.faults[0]}" for lane in self.lanes if lane.faults]
        invalid = [f"INVALID: {run.name}: {run.fault}" for run in self.runs if run.fault and not run.repeated]
        return wrong + invalid

    @property
    def remarks(self) -> list[str]:
        """What is worth knowing beside that."""
        return [f"{run.name}: {run.remark}" for run in self.runs if run.remark and not run.repeated]

    @property
    def sound(self) -> bool:
        """Whether every lane gave right answers, before and during the measurement."""
        return not any(lane.faults for lane in self.lanes) and not any(run.recording.wrong for run in self.runs)


def write_result(result: Result, folder: Path) -> Path:
    """Write `folder`/result.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULT_FILE
    temporary = path.with_name(f".{RESULT_FILE}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(result.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
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
