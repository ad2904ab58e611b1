"""The result of a benchmark: settings, measurements and environment, as one JSON file."""

from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bundle.atomic_file import atomic_write
from loadtest.benchmark.calibration import Calibration
from loadtest.errors import ResultError
from loadtest.generator.recording import Recording
from loadtest.lanes.ceiling import Ceiling, CeilingSpec
from loadtest.lanes.parity_gate import LaneParity
from loadtest.load import Load, OpenLoop
from loadtest.machine.environment import Environment
from loadtest.machine.resources import DISTURBED_CORES, ResourceUse
from loadtest.settings import BenchSettings

RESULTS: Final = Path("artifacts/results")
RESULT_FILE: Final = "result.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Part):
    """One load on one lane, once.

    Args:
        server_stages_s: mean seconds per stage, from the server's own counters.
        requests_file: the rows of the requests, relative to the result; None: not stored.
        repeated: the run was distorted by the generator, and another one followed.
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
        """The name in messages."""
        return f"{self.lane}, {self.load.label}, round {self.round + 1}"

    @property
    def invalid_reason(self) -> str | None:
        """Why the figures of this run must not be used; None if it is valid."""
        reason = self.recording.invalid_reason(open_loop=isinstance(self.load.loop, OpenLoop))
        if reason is None and self.resources is not None and self.resources.busy_servers is not None:
            return f"other servers were not idle: {self.resources.busy_servers}"
        return reason

    @property
    def remark(self) -> str | None:
        """A disturbance that does not make the run invalid; None if there was none."""
        remarks = []
        if self.resources is not None and self.resources.other_cores > DISTURBED_CORES:
            remarks.append(f"other processes of the machine used {self.resources.other_cores:.1f} cores")
        if not self.recording.warm_up.stable:
            remarks.append(f"latency was not stable after {self.recording.warm_up.seconds:.1f} s of warm-up")
        if self.recording.generator.waited_for_connection:
            remarks.append(f"{self.recording.generator.waited_for_connection} arrivals waited for a connection")
        return "; ".join(remarks) or None


class Result(_Part):
    """One benchmark.

    Args:
        serving: by lane, the server's settings, if they are known.
        ceiling_specs: by lane, the settings of its ceiling, if they are known.
    """

    schema_version: Literal[3] = 3
    created: datetime
    bundle: str
    settings: BenchSettings
    serving: dict[str, dict[str, Any]]
    ceiling_specs: dict[str, CeilingSpec] = {}
    server_cores: tuple[int, ...]
    generator_cores: tuple[int, ...]
    environment: Environment
    calibration: Calibration | None
    lanes: tuple[LaneParity, ...]
    ceilings: tuple[Ceiling, ...]
    runs: tuple[Run, ...]

    @property
    def valid_runs(self) -> list[Run]:
        """The valid runs, without probes."""
        return [run for run in self.runs if run.invalid_reason is None and not run.load.probe]

    @property
    def problems(self) -> list[str]:
        """The lanes that failed the parity gate, and the invalid runs."""
        failed = [f"{lane.name} was not timed: {lane.faults[0]}" for lane in self.lanes if lane.faults]
        invalid = [
            f"INVALID: {run.name}: {run.invalid_reason}"
            for run in self.runs
            if run.invalid_reason is not None and not run.repeated
        ]
        return failed + invalid

    @property
    def remarks(self) -> list[str]:
        """The remarks of all runs that were not repeated."""
        return [f"{run.name}: {run.remark}" for run in self.runs if run.remark is not None and not run.repeated]

    @property
    def sound(self) -> bool:
        """Whether every lane gave the golden answers, before and during the measurement."""
        return not any(lane.faults for lane in self.lanes) and not any(run.recording.wrong for run in self.runs)


def write_result(result: Result, folder: Path) -> Path:
    """Write `folder`/result.json; the file is complete or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULT_FILE
    atomic_write(path, result.model_dump_json(indent=1) + "\n")
    return path


def read_result(path: Path) -> Result:
    """Read a result file, or the result file in a folder.

    Raises:
        ResultError: it is missing, or not a result.
    """
    path = path / RESULT_FILE if path.is_dir() else path
    try:
        return Result.model_validate_json(path.read_text())
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}; `trident bench` writes results") from error
    except ValidationError as error:
        raise ResultError(f"{path} is not a result of this version: {error.errors()[0]['msg']}") from error


def latest_result(root: Path = RESULTS) -> Path:
    """The folder of the newest result.

    Raises:
        ResultError: there is none.
    """
    found = sorted(root.glob(f"*/{RESULT_FILE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ResultError(f"no result below {root}; `trident bench` writes one")
    return found[-1].parent
