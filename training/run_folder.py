"""Folders of training runs: where they are, and the files in them. Does not import torch."""

from datetime import datetime
from pathlib import Path
from typing import Final

from bundle.atomic_file import atomic_write
from training.errors import CheckpointError
from training.settings import TrainSettings

RUNS: Final = Path("artifacts/runs")
SETTINGS_FILE: Final = "settings.json"
RESULT_FILE: Final = "result.json"


def new_run_dir(name: str) -> Path:
    """Return the path for a run that starts now; does not create it."""
    return RUNS / name / f"{datetime.now():%Y%m%d-%H%M%S}"


def newest_checkpoint(name: str | None = None, root: Path = RUNS) -> Path:
    """Return the most recent best.pt of the runs called `name`, or of all runs.

    Raises:
        CheckpointError: there is none.
    """
    folder = root / name if name is not None else root
    found = sorted(folder.rglob("best.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}; `trident train` writes one")
    return found[-1]


def unfinished_run(root: Path = RUNS) -> Path:
    """Return the folder of the unfinished run with the most recent state.

    Raises:
        CheckpointError: there is none.
    """
    states = sorted(root.rglob("checkpoints/step-*.pt"), key=lambda path: path.stat().st_mtime)
    folders = [path.parents[1] for path in states if not is_finished(path.parents[1])]
    if not folders:
        raise CheckpointError(f"no unfinished run in {root}; name one with --run-dir")
    return folders[-1]


def is_finished(run_dir: Path) -> bool:
    """Whether the run in `run_dir` has a result."""
    return (run_dir / RESULT_FILE).is_file()


def read_settings(run_dir: Path) -> TrainSettings | None:
    """Read `run_dir`/settings.json; None if there is no such file.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run_dir / SETTINGS_FILE
    if not path.is_file():
        return None
    try:
        return TrainSettings.model_validate_json(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def write_settings(run_dir: Path, settings: TrainSettings) -> None:
    """Write `run_dir`/settings.json; create the folder if needed."""
    run_dir.mkdir(parents=True, exist_ok=True)
    atomic_write(run_dir / SETTINGS_FILE, settings.model_dump_json(indent=2) + "\n")
