"""Trackers, which log the metrics of a run: JSON lines always, TensorBoard and MLflow on request.

`metrics.jsonl` has one line per epoch, `steps.jsonl` one per LOG_STEPS optimiser steps. TensorBoard and MLflow are
imported only when used.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from training.errors import TrackingError
from training.settings import TrainSettings

# MLflow rejects a store in a folder called "artifacts".
MLFLOW_STORE: Final = Path("mlruns")
Unit = Literal["step", "epoch"]


class Tracker(Protocol):
    """A destination for the metrics of a run. `number` counts steps or epochs from 0."""

    def log(self, unit: Unit, number: int, values: Mapping[str, float]) -> None:
        """Log the values of a step or an epoch."""

    def close(self, summary: Mapping[str, float], files: list[Path]) -> None:
        """Log the final values and the report of the run; both are empty if it was interrupted."""


def open_trackers(settings: TrainSettings, run_dir: Path, first_step: int, first_epoch: int) -> list[Tracker]:
    """Open the JSON lines and the trackers named in `settings.track`.

    A resumed run continues at `first_step` and `first_epoch`; values logged after its last checkpoint are removed.

    Raises:
        TrackingError: a tracker is not installed or not reachable.
    """
    trackers: list[Tracker] = [JsonLines(run_dir, {"step": first_step, "epoch": first_epoch})]
    openers = {"tensorboard": _tensorboard, "mlflow": _mlflow}
    for name in settings.track:
        try:
            trackers.append(openers[name](settings, run_dir, first_step))
        except ImportError as error:
            raise TrackingError(f"--track {name}: {error}; `pip install 'trident-serving[tracking]'`") from error
    return trackers


class JsonLines:
    """Logs to `steps.jsonl` and `metrics.jsonl`, one JSON object per line."""

    def __init__(self, run_dir: Path, first: Mapping[Unit, int]) -> None:
        self._files = {}
        names: dict[Unit, str] = {"step": "steps.jsonl", "epoch": "metrics.jsonl"}
        for unit, name in names.items():
            path = run_dir / name
            kept = [line for line in read_lines(path) if line[unit] < first[unit]]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))
            self._files[unit] = path.open("a", buffering=1)

    def log(self, unit: Unit, number: int, values: Mapping[str, float]) -> None:
        """Write a line."""
        self._files[unit].write(json.dumps({unit: number, **values}) + "\n")

    def close(self, summary: Mapping[str, float], files: list[Path]) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a JSON-lines file; an incomplete last line is ignored. Empty if there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class _TensorBoard:
    def __init__(self, run_dir: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(run_dir / "tensorboard", purge_step=first_step or None)

    def log(self, unit: Unit, number: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{unit}/{name}", value, number)

    def close(self, summary: Mapping[str, float], files: list[Path]) -> None:
        for name, value in summary.items():
            self._writer.add_scalar(f"result/{name}", value, 0)
        self._writer.close()


def _tensorboard(_: TrainSettings, run_dir: Path, first_step: int) -> Tracker:
    return _TensorBoard(run_dir, first_step)


class _Mlflow:
    """Logs to MLFLOW_TRACKING_URI or a local file store. A resumed run continues the run in `mlflow_run_id`."""

    def __init__(self, settings: TrainSettings, run_dir: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # The file store is deprecated and must be enabled; the alternatives need a server or SQLAlchemy.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", MLFLOW_STORE.resolve().as_uri()))
        id_file = run_dir / "mlflow_run_id"
        try:
            if id_file.is_file():
                self._run = id_file.read_text().strip()
                self._client.update_run(self._run, status="RUNNING")
                return
            found = self._client.get_experiment_by_name(settings.name)
            experiment = found.experiment_id if found else self._client.create_experiment(settings.name)
            self._run = self._client.create_run(experiment, run_name=run_dir.name).info.run_id
            for name, value in settings.model_dump(mode="json").items():
                self._client.log_param(self._run, name, value)
        except MlflowException as error:
            raise TrackingError(f"--track mlflow: {error}") from error
        id_file.write_text(self._run + "\n")

    def log(self, unit: Unit, number: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, f"{unit}/{name}", value, step=number)

    def close(self, summary: Mapping[str, float], files: list[Path]) -> None:
        for name, value in summary.items():
            self._client.log_metric(self._run, name, value)
        for path in files:
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, "FINISHED" if summary else "KILLED")


def _mlflow(settings: TrainSettings, run_dir: Path, _: int) -> Tracker:
    return _Mlflow(settings, run_dir)
