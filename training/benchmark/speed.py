"""`python -m training.benchmark.speed`: seconds per epoch of the trainer, relative to a plain loop.

Every round trains every candidate from the start, in a new random order. An epoch includes its validation and its
checkpoints. The first epoch of a run is not counted, because it compiles and fills caches. Ratios are ratios of medians.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from training.benchmark.plain_loop import train_plain_loop
from training.benchmark.processor import processor
from training.datasets import Dataset, load_dataset
from training.progress import EpochResult
from training.settings import TrainSettings
from training.trainer import Trainer

Candidate = Callable[[TrainSettings, Dataset, Path], list[float]]


class EpochClock:
    """A progress display that records when each epoch ends, after its checkpoints are written."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]

    def batch_done(self, epoch: int, loss: float | None) -> None:
        """Do nothing."""

    def epoch_done(self, result: EpochResult, *, best: bool) -> None:
        """Record the time."""
        self.ends.append(time.perf_counter())


def _trainer(**options: object) -> Candidate:
    def train(settings: TrainSettings, dataset: Dataset, folder: Path) -> list[float]:
        settings = settings.model_copy(update={"channels_last": False} | options)
        clock = EpochClock()
        Trainer(settings, dataset, folder, clock).fit()
        return [end - start for start, end in pairwise(clock.ends)]

    return train


CANDIDATES: dict[str, Candidate] = {
    "plain loop": train_plain_loop,
    "trident, the same settings": _trainer(),
    "trident, channels_last (the default)": _trainer(channels_last=True),
    "trident, bf16": _trainer(precision="bf16"),
    "trident, channels_last, bf16": _trainer(channels_last=True, precision="bf16"),
    "trident, channels_last, compile": _trainer(channels_last=True, compile=True),
}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="simple_cnn")
    parser.add_argument("--epochs", type=int, default=6, help="per round and candidate; the first one is not counted")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", default="", help="run only candidates whose names contain this, and the plain loop")
    given = parser.parse_args()
    settings = TrainSettings(model=given.model, epochs=max(2, given.epochs))
    dataset = load_dataset(settings)
    chosen = {name: run for name, run in CANDIDATES.items() if given.only in name or name == "plain loop"}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    console, order = Console(), random.Random(0)  # noqa: S311 - an order, not a secret
    with console.status("measuring") as status:
        for round_ in range(given.rounds):
            for name in order.sample(list(chosen), len(chosen)):
                status.update(f"round {round_ + 1} of {given.rounds}: {name}")
                with tempfile.TemporaryDirectory() as folder:
                    seconds[name] += chosen[name](settings, dataset, Path(folder))[1:]
    threads = torch.get_num_threads()
    console.print(
        f"{settings.model} on digits, batches of {settings.batch_size}, {threads} threads, {processor()}, "
        f"torch {torch.__version__}"
    )
    table = Table("", "s per epoch", "lowest to highest", "speed", "n", box=None, header_style="dim")
    plain = median(seconds["plain loop"])
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        table.add_row(name, f"{median(values):.2f}", spread, f"{plain / median(values):.2f}", str(len(values)))
    console.print(table)


if __name__ == "__main__":
    main()
