"""A sweep: one run per combination of settings and seed, in parallel processes.

The folder of a sweep has one folder per run, `sweep.json`, and `sweep.svg`, the validation loss of every combination.
"""

import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from training.errors import TrainingError
from training.run_folder import RESULT_FILE, is_finished, read_settings, write_settings
from training.settings import TrainSettings, resolve_settings
from training.tracking import read_lines


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: the values of its combination, its seed, and all its settings."""

    values: tuple[tuple[str, str], ...]
    seed: int
    settings: TrainSettings

    @property
    def name(self) -> str:
        """The combination, for people."""
        return " ".join(f"{key}={value}" for key, value in self.values) or "default"

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        return "_".join([*(f"{key}-{value}" for key, value in self.values), f"seed-{self.seed}"]).replace("/", "-")


@dataclass(frozen=True)
class Outcome:
    """Results of one combination: test accuracies (fractions) and validation losses by seed, mean seconds per run."""

    name: str
    accuracies: tuple[float, ...]
    val_losses: tuple[tuple[float, ...], ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        """Mean test accuracy."""
        return mean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the test accuracy; None for a single seed."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None


def build_trials(grid: Sequence[str], given: Mapping[str, Any], seeds: int) -> list[Trial]:
    """Return one trial per combination of the values in `grid`, with seeds 0, 1, ...

    Args:
        grid: entries of the form FLAG=VALUE,VALUE.
        given: settings for all trials.
        seeds: number of trials per combination.

    Raises:
        TrainingError: an entry has another form or names no setting.
        pydantic.ValidationError: a value is invalid.
    """
    axes = [[(flag, value) for value in values] for flag, values in map(_parse_axis, grid)]
    return [Trial(values, seed, _settings(given, values, seed)) for values in product(*axes) for seed in range(seeds)]


def _parse_axis(entry: str) -> tuple[str, list[str]]:
    """`optimizer=adam,adamw` -> the flag without dashes in front, and its values."""
    flag, _, text = entry.partition("=")
    flag = flag.strip().removeprefix("--").replace("_", "-")
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not values:
        raise TrainingError(f"--grid {entry}: must have the form FLAG=VALUE,VALUE, e.g. optimizer=adam,adamw")
    if flag.replace("-", "_") not in TrainSettings.model_fields:
        flags = ", ".join(name.replace("_", "-") for name in TrainSettings.model_fields)
        raise TrainingError(f"--grid {entry}: no setting {flag!r}; available are {flags}")
    return flag, values


def _settings(given: Mapping[str, Any], values: tuple[tuple[str, str], ...], seed: int) -> TrainSettings:
    varied = {flag.replace("-", "_"): value for flag, value in values}
    return resolve_settings({**given, **varied, "seed": seed})


def run_trials(trials: Sequence[Trial], folder: Path, jobs: int) -> Generator[tuple[Trial, dict[str, Any]]]:
    """Run the trials, `jobs` at a time with an equal share of the cores each; yield each result when it is ready.

    Finished runs in `folder` are not repeated, unfinished ones are resumed. If a run fails or the caller stops
    iterating, all running processes are stopped.

    Raises:
        TrainingError: a run failed, or `folder` has a run with other settings.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    running: set[subprocess.Popen[str]] = set()

    def run(trial: Trial) -> tuple[Trial, dict[str, Any]]:
        run_dir = folder / trial.folder
        _prepare(run_dir, trial.settings)
        if not is_finished(run_dir):
            _run_process(run_dir, trial, threads, running)
        return trial, json.loads((run_dir / RESULT_FILE).read_text())

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, trial) for trial in trials]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(running):
                process.terminate()


def _prepare(run_dir: Path, settings: TrainSettings) -> None:
    """Write the settings with which the run is then started.

    Raises:
        TrainingError: there is a run with other settings.
    """
    stored = read_settings(run_dir)
    if stored is None:
        write_settings(run_dir, settings)
    elif stored != settings:
        raise TrainingError(f"{run_dir} has a run with other settings; name another --sweep-dir")


def _run_process(run_dir: Path, trial: Trial, threads: int, running: set[subprocess.Popen[str]]) -> None:
    """Start or resume a run in a process of its own, and wait for it.

    Raises:
        TrainingError: the run failed; the message is the last line of its output.
    """
    command = [sys.executable, "-m", "trident", "train", "--run-dir", str(run_dir), "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        running.add(process)
        output, _ = process.communicate()
        running.discard(process)
    if process.returncode:
        last_line = (output.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise TrainingError(f"{trial.name}, seed {trial.seed}: {last_line}")


def summarise(results: Mapping[Trial, Mapping[str, Any]], folder: Path) -> list[Outcome]:
    """Return one outcome per combination, best first, and write them to sweep.json."""
    outcomes = []
    for name in dict.fromkeys(trial.name for trial in results):
        trials = sorted((trial for trial in results if trial.name == name), key=lambda trial: trial.seed)
        metrics = [read_lines(folder / trial.folder / "metrics.jsonl") for trial in trials]
        outcomes.append(
            Outcome(
                name=name,
                accuracies=tuple(results[trial]["test_accuracy"] for trial in trials),
                val_losses=tuple(tuple(line["val_loss"] for line in lines) for lines in metrics),
                seconds=mean(results[trial]["seconds"] for trial in trials),
            )
        )
    outcomes.sort(key=lambda outcome: -outcome.accuracy)
    (folder / "sweep.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    return outcomes


def plot_losses(outcomes: Sequence[Outcome], path: Path) -> None:
    """Plot the validation loss by epoch: mean and range over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for outcome in outcomes:
        epochs = range(1, min(map(len, outcome.val_losses)) + 1)
        by_epoch = list(zip(*outcome.val_losses, strict=False))
        (line,) = axes.plot(epochs, [mean(losses) for losses in by_epoch], label=outcome.name)
        lowest, highest = list(map(min, by_epoch)), list(map(max, by_epoch))
        axes.fill_between(epochs, lowest, highest, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="epoch", ylabel="validation loss", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path)
