"""One training run: trainer, trackers and report, in one folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bundle.atomic_file import atomic_write
from training.checkpoint import load_state, state_files
from training.datasets import Dataset
from training.distributed import Processes
from training.errors import CheckpointError
from training.progress import Progress, RunResult
from training.run_folder import RESULT_FILE, is_finished, read_settings, write_settings
from training.settings import TrainSettings
from training.tracking import Tracker, open_trackers
from training.trainer import Trainer

WriteReport = Callable[[Path, TrainSettings, Dataset, RunResult], Path]


def resumed_settings(run_dir: Path, given: dict[str, Any], settings: TrainSettings) -> TrainSettings:
    """Return the settings of the run in `run_dir`, or `settings` if there is no run.

    Args:
        run_dir: folder of the run.
        given: the settings that were given explicitly; they must not change.
        settings: `given` with the defaults.

    Raises:
        CheckpointError: the run has finished, or a given setting differs from the run's.
    """
    if is_finished(run_dir):
        raise CheckpointError(f"the run in {run_dir} has finished; its result is in {run_dir / RESULT_FILE}")
    states = state_files(run_dir / "checkpoints")
    stored = load_state(states[-1]).settings if states else read_settings(run_dir)
    if stored is None:
        return settings
    new, old = settings.model_dump(), stored.model_dump()
    changed = [f"--{key.replace('_', '-')} {old[key]}" for key in given if new[key] != old[key]]
    if changed:
        raise CheckpointError(
            f"the run in {run_dir} was started with {', '.join(changed)}; a resumed run keeps its settings"
        )
    return stored


def run_training(
    settings: TrainSettings,
    dataset: Dataset,
    run_dir: Path,
    progress: Progress,
    *,
    resume: bool = False,
    processes: Processes | None = None,
    write_report: WriteReport | None = None,
    on_start: Callable[[Trainer], None] = lambda _: None,
) -> RunResult:
    """Train, and write everything to `run_dir`.

    Files: settings.json, metrics.jsonl, steps.jsonl, checkpoints/, best.pt; at the end result.json and the file that
    `write_report` writes.

    Raises:
        CheckpointError: `run_dir` has a run, and `resume` is false.
    """
    trainer = Trainer(settings, dataset, run_dir, progress, processes)
    if not resume and state_files(trainer.states):
        raise CheckpointError(f"{run_dir} already has a run; continue it with --resume, or name another --run-dir")
    if resume:
        trainer.resume()
    on_start(trainer)
    if not trainer.processes.is_leader:
        return trainer.fit()
    write_settings(run_dir, settings)
    trainer.trackers = open_trackers(settings, run_dir, trainer.step, len(trainer.results))
    return _run_as_leader(trainer, write_report)


def _run_as_leader(trainer: Trainer, write_report: WriteReport | None) -> RunResult:
    """Train, then write the report and the result. Close the trackers in any case."""
    run_dir, trackers = trainer.run_dir, trainer.trackers
    try:
        result = trainer.fit()
        files = [] if write_report is None else [write_report(run_dir, trainer.settings, trainer.dataset, result)]
    except BaseException:
        _close(trackers, {}, [])
        raise
    summary = {
        "test_accuracy": result.test_accuracy,
        "test_loss": result.test.loss,
        "val_accuracy": result.val_accuracy,
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
    }
    _close(trackers, summary, files)
    content = summary | {"seconds": result.seconds, "class_accuracy": result.test.class_accuracy}
    atomic_write(run_dir / RESULT_FILE, json.dumps(content, indent=2) + "\n")
    return result


def _close(trackers: Sequence[Tracker], summary: dict[str, float], files: list[Path]) -> None:
    for tracker in trackers:
        tracker.close(summary, files)
