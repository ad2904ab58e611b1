"""Profile of some training steps with torch.profiler.

Writes `trace.json`, for Perfetto (https://ui.perfetto.dev) or chrome://tracing, and `operators.txt`, PyTorch's table of
operators. Shows the time per phase: wait for data, forward, backward, optimiser.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from training.progress import EpochResult, Progress

PHASES: Final = ("wait for data", "forward", "backward", "optimiser")
WARMUP_STEPS: Final = 2


class ProfiledProgress:
    """A progress display that also profiles `steps` steps, after WARMUP_STEPS. A context manager."""

    def __init__(self, progress: Progress, folder: Path, steps: int, show: Callable[[Table | str], None]) -> None:
        self.progress = progress
        self.folder = folder
        self.steps = steps
        self.show = show
        self._steps_seen = 0
        self._profile: profile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._profile is not None:  # the run had fewer steps
            self._finish()

    def batch_done(self, epoch: int, loss: float | None) -> None:
        """Start or finish the profile, if this is the step for it."""
        self.progress.batch_done(epoch, loss)
        self._steps_seen += 1
        if self._steps_seen == WARMUP_STEPS:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()
        elif self._steps_seen == WARMUP_STEPS + self.steps and self._profile is not None:
            self._finish()

    def epoch_done(self, result: EpochResult, *, best: bool) -> None:
        """Forward the result."""
        self.progress.epoch_done(result, best=best)

    def _finish(self) -> None:
        finished, self._profile = self._profile, None
        assert finished is not None
        finished.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(self.folder / "trace.json"))
        averages = finished.key_averages()
        sort_by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        (self.folder / "operators.txt").write_text(averages.table(sort_by=sort_by, row_limit=40))
        steps = self._steps_seen - WARMUP_STEPS
        if steps:
            self.show(_phase_table({event.key: event.cpu_time_total / 1000 for event in averages}, steps))
        self.show(f"profile of {steps} steps: {self.folder / 'trace.json'} and operators.txt")


def _phase_table(total_ms: dict[str, float], steps: int) -> Table:
    table = Table("phase", "ms per step", "share", box=None, header_style="dim")
    phases_ms = {name: total_ms.get(name, 0.0) for name in PHASES}
    sum_ms = sum(phases_ms.values()) or 1.0
    for name, phase_ms in phases_ms.items():
        table.add_row(name, f"{phase_ms / steps:.2f}", f"{phase_ms / sum_ms:.0%}")
    return table
