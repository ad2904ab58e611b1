"""A small grid of runs in parallel processes: every combination of the given values, with several seeds each.

A folder per sweep: a folder per run, `sweep.json`, and `sweep.svg`, the validation loss of every combination by epoch.
"""

import json
import math
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
from training.tracking import read_lines


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: the values of its combination, and its seed."""

    values: tuple[tuple[str, str], ...]
    seed: int

    @property
    def name(self) -> str:
        """The combination, as a person reads it."""
        return " ".join(f"{key}={value}" for key, value in self.values) or "default"

    @property
    def folder(self) -> str:
        """The name of the run's folder."""
        return "_".join([*(f"{key}-{value}" for key, value in self.values), f"seed-{self.seed}"]).replace("/", "-")


@dataclass(frozen=True)
class Outcome:
    """What a combination came to: test accuracies (fractions) by seed, and seconds per run."""

    name: str
    accuracies: tuple[float, ...]
    val_losses: tuple[tuple[float, ...], ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        """The mean."""
        return mean(self.accuracies)

    @property
    def deviation(self) -> float:
        """The sample's standard deviation; NaN of a single seed."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else math.nan


def trials(grid: Sequence[str], seeds: int) -> list[Trial]:
    """Every combination of `key=value,value` entries, with seeds 0, 1, ...

    Raises:
        TrainingError: an entry is not of that form.
    """
    axes: list[list[tuple[str, str]]] = []
    for entry in grid:
        key, equals, values = entry.partition("=")
        names = [value.strip() for value in values.split(",") if value.strip()]
        if not equals or not names:
            raise TrainingError(f"{entry!r} is not of the form FLAG=VALUE,VALUE (optimizer=adam,adamw)")
        axes.append([(key.strip().removeprefix("--").replace("_", "-"), value) for value in names])
    return [Trial(values, seed) for values in product(*axes) for seed in range(seeds)]


def run_trials(
    chosen: Sequence[Trial], common: Sequence[str], folder: Path, jobs: int
) -> Generator[tuple[Trial, dict[str, Any]]]:
    """Run them, `jobs` at a time with an equal share of the cores each, and give each one's result as it ends.

    `common` are arguments of `trident train` for all of them. A run that is there already is not run again. If one
    fails, or the caller stops, those under way are ended.

    Raises:
        TrainingError: a run failed; the message is its own.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    in_flight: set[subprocess.Popen[str]] = set()

    def run(trial: Trial) -> tuple[Trial, dict[str, Any]]:
        run_dir = folder / trial.folder
        result = run_dir / "result.json"
        if not result.is_file():
            flags = [f"--{key}={value}" for key, value in trial.values]
            command = [sys.executable, "-m", "trident", "train", *common, *flags, "--seed", str(trial.seed)]
            command += ["--run-dir", str(run_dir), "--resume"]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            with subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process:
                in_flight.add(process)
                said, _ = process.communicate()
                in_flight.discard(process)
            if process.returncode:
                raise TrainingError(f"{trial.name}, seed {trial.seed}: {said.strip().splitlines()[-1]}")
        return trial, json.loads(result.read_text())

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, trial) for trial in chosen]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(in_flight):
                process.terminate()


def summarised(results: Mapping[Trial, Mapping[str, Any]], folder: Path) -> list[Outcome]:
    """An outcome per combination, the best first; written to sweep.json too."""
    names = dict.fromkeys(trial.name for trial in results)
    outcomes = []
    for name in names:
        of_name = sorted((trial for trial in results if trial.name == name), key=lambda trial: trial.seed)
        losses = [read_lines(folder / trial.folder / "metrics.jsonl") for trial in of_name]
        outcomes.append(
            Outcome(
                name=name,
                accuracies=tuple(results[trial]["test_accuracy"] for trial in of_name),
                val_losses=tuple(tuple(line["val_loss"] for line in lines) for lines in losses),
                seconds=mean(results[trial]["seconds"] for trial in of_name),
            )
        )
    outcomes.sort(key=lambda outcome: -outcome.accuracy)
    (folder / "sweep.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    return outcomes


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Validation loss by epoch: the mean over the seeds, and their range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for outcome in outcomes:
        epochs = range(1, min(map(len, outcome.val_losses)) + 1)
        by_epoch = list(zip(*outcome.val_losses, strict=False))
        (line,) = axes.plot(epochs, [mean(losses) for losses in by_epoch], label=outcome.name)
        axes.fill_between(
            epochs, list(map(min, by_epoch)), list(map(max, by_epoch)), color=line.get_color(), alpha=0.15
        )
    axes.set(xlabel="epoch", ylabel="validation loss", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path)
