"""The figures of the check: rows of each step, as JSON and as Markdown tables with the device's name."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from bundle.atomic_file import atomic_write

JSON: Final = "gpu-check.json"
MARKDOWN: Final = "gpu-check.md"

Value = str | int | float | None
Row = dict[str, Value]  # by column, with the unit in its name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Part):
    """The machine. `device`: the GPU's name, or the processor's."""

    device: str
    cpu: str
    cores: int
    versions: dict[str, str]
    git_revision: str | None


class StepResult(_Part):
    """What one step found.

    Args:
        reason: why it was skipped or failed.
        rows: what was measured, also before it failed.
        notes: parts that were skipped, with the reason.
    """

    name: str
    title: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    seconds: float = 0.0
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


class Report(_Part):
    """One check."""

    created: datetime
    device: str
    quick: bool
    command: str
    machine: Machine
    steps: tuple[StepResult, ...] = ()

    @property
    def failed(self) -> list[str]:
        """The names of the steps that failed."""
        return [step.name for step in self.steps if step.status == "failed"]


def write_report(report: Report, folder: Path) -> None:
    """Write both files into `folder`. Each is complete or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / JSON, report.model_dump_json(indent=1) + "\n")
    atomic_write(folder / MARKDOWN, markdown(report))


def markdown(report: Report) -> str:
    """The report as Markdown, with one table per step."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    when = f"{report.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    lines = [
        f"# GPU check on {machine.device}",
        "",
        f"{when}, revision {machine.git_revision or 'unknown'}, {machine.cores} cores of {machine.cpu}, {versions}.",
        "",
        f"Command: `{report.command}`",
    ]
    if report.device == "cpu":
        lines += ["", "This run used the CPU in place of a GPU: it shows that the code runs, not how fast a GPU is."]
    if report.quick:
        lines += ["", "This run was quick (`--quick`): its figures are too short to be compared."]
    for step in report.steps:
        lines += ["", f"## {step.title}", "", *_step_lines(step)]
    return "\n".join(lines) + "\n"


def _step_lines(step: StepResult) -> Iterable[str]:
    reason = f": {step.reason}" if step.reason else f" in {step.seconds:.0f} s"
    yield f"{step.status.capitalize()}{reason}."
    if step.rows:
        yield ""
        yield from _table(step.rows)
    for note in step.notes:
        yield ""
        yield f"Skipped: {note}."


def _table(rows: Iterable[Row]) -> Iterable[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(_cell(row.get(column)) for column in columns)} |"


def _cell(value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
