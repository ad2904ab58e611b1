"""Where the time of training goes: some steps under torch.profiler, as a trace and as two tables.

`trace.json` opens in Perfetto (https://ui.perfetto.dev) or chrome://tracing. `operators.txt` has PyTorch's own table. The
short table is of the trainer's phases: waiting for data, forward, backward, optimiser.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from training.trainer import EpochResult, Progress

PHASES: Final = ("wait for the data", "forward", "backward", "optimiser")
WARMUP_STEPS: Final = 2


class Profiled:
    """Passes the progress of a run on, and profiles `steps` steps of it after the first few. A context manager."""

    def __init__(self, progress: Progress, folder: Path, steps: int, show: Callable[[Table | str], None]) -> None:
        self.progress = progress
        self.folder = folder
        self.steps = steps
        self.show = show
        self._seen = 0
        self._profile: profile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._profile is not None:  # the run was shorter than was asked for
            self._finish()

    def batch_done(self, epoch: int, loss: float) -> None:
        """One step is done: begin, go on or end."""
        self.progress.batch_done(epoch, loss)
        self._seen += 1
        if self._seen == WARMUP_STEPS:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()
        elif self._seen == WARMUP_STEPS + self.steps and self._profile is not None:
            self._finish()

    def epoch_done(self, result: EpochResult, *, best: bool) -> None:
        """Passed on."""
        self.progress.epoch_done(result, best=best)

    def _finish(self) -> None:
        finished, self._profile = self._profile, None
        assert finished is not None
        finished.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(self.folder / "trace.json"))
        averages = finished.key_averages()
        on_device = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        (self.folder / "operators.txt").write_text(averages.table(sort_by=on_device, row_limit=40))
        steps = self._seen - WARMUP_STEPS
        if steps:
            self.show(_phases({event.key: event.cpu_time_total / 1000 for event in averages}, steps))
        self.show(f"profile of {steps} steps: {self.folder / 'trace.json'} and operators.txt")


def _phases(total_ms: dict[str, float], steps: int) -> Table:
    table = Table("phase", "ms per step", "share", box=None, header_style="dim")
    of_phases = {name: total_ms.get(name, 0.0) for name in PHASES}
    whole = sum(of_phases.values()) or 1.0
    for name, milliseconds in of_phases.items():
        table.add_row(name, f"{milliseconds / steps:.2f}", f"{milliseconds / whole:.0%}")
    return table
