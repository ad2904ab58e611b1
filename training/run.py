"""One run from its settings to its result: the trainer, the trackers, the report."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from bundle.atomic_file import atomic_write
from training.checkpoint import load_state, state_files
from training.datasets import Dataset
from training.distributed import Processes
from training.errors import CheckpointError
from training.settings import TrainSettings
from training.tracking import open_trackers
from training.trainer import Progress, RunResult, Trainer

RUNS: Final = Path("artifacts/runs")
SETTINGS_FILE: Final = "settings.json"
RESULT_FILE: Final = "result.json"

Report = Callable[[Path, TrainSettings, Dataset, RunResult], Path]


def new_run_dir(name: str) -> Path:
    """A folder for a run that starts now; it is not made."""
    return RUNS / name / f"{datetime.now():%Y%m%d-%H%M%S}"


def unfinished_run(root: Path = RUNS) -> Path:
    """The folder of the run that was checkpointed last and did not end.

    Raises:
        CheckpointError: there is none.
    """
    states = sorted(root.rglob("checkpoints/step-*.pt"), key=lambda path: path.stat().st_mtime)
    folders = [path.parents[1] for path in states if not (path.parents[1] / RESULT_FILE).is_file()]
    if not folders:
        raise CheckpointError(f"no run below {root} waits to be resumed; name one with --run-dir")
    return folders[-1]


def resumed_settings(run_dir: Path, given: dict[str, Any], settings: TrainSettings) -> TrainSettings:
    """The settings with which the run in `run_dir` was started, or `settings` if there is none.

    Raises:
        CheckpointError: the run has ended, or something else was `given` than it was started with.
    """
    if (run_dir / RESULT_FILE).is_file():
        raise CheckpointError(f"the run in {run_dir} has ended; its result is in {run_dir / RESULT_FILE}")
    files, kept = state_files(run_dir / "checkpoints"), run_dir / SETTINGS_FILE
    if files:
        started_with = load_state(files[-1]).settings
    elif kept.is_file():  # it did not get to a checkpoint
        started_with = TrainSettings.model_validate_json(kept.read_text())
    else:
        return settings
    wanted, have = settings.model_dump(), started_with.model_dump()
    changed = [f"--{key.replace('_', '-')} {have[key]}" for key in given if wanted[key] != have[key]]
    if changed:
        raise CheckpointError(f"the run in {run_dir} was started with {', '.join(changed)}; a resumed run keeps that")
    return started_with


def run_training(
    settings: TrainSettings,
    dataset: Dataset,
    run_dir: Path,
    progress: Progress,
    *,
    resume: bool = False,
    processes: Processes | None = None,
    report: Report | None = None,
    on_start: Callable[[Trainer], None] = lambda _: None,
) -> RunResult:
    """Train into `run_dir`: settings.json, metrics.jsonl, steps.jsonl, checkpoints/, best.pt, then result.json and what
    `report` writes.

    Raises:
        CheckpointError: there is a run in `run_dir`, and `resume` is not asked for.
    """
    trainer = Trainer(settings, dataset, run_dir, progress, processes)
    if not resume and state_files(trainer.states):
        raise CheckpointError(f"{run_dir} has a run already; go on with --resume, or name another --run-dir")
    if resume:
        trainer.resume()
    on_start(trainer)
    if not trainer.processes.leads:
        return trainer.fit()
    run_dir.mkdir(parents=True, exist_ok=True)
    atomic_write(run_dir / SETTINGS_FILE, settings.model_dump_json(indent=2) + "\n")
    trainer.trackers = open_trackers(settings, run_dir, trainer.step, len(trainer.results))
    summary: dict[str, float] = {}
    files: list[Path] = []
    try:
        result = trainer.fit()
        files = [] if report is None else [report(run_dir, settings, dataset, result)]
        summary = {"test_accuracy": result.test_accuracy, "test_loss": result.test.loss}
        summary |= {"val_accuracy": result.val_accuracy, "best_epoch": result.best_epoch, "epochs": result.epochs}
    finally:
        for tracker in trainer.trackers:
            tracker.close(summary, files)
    written = summary | {"seconds": result.seconds, "class_accuracy": result.test.class_accuracy}
    atomic_write(run_dir / RESULT_FILE, json.dumps(written, indent=2) + "\n")
    return result
