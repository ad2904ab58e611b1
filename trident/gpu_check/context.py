"""What every step gets: the check's settings, and where its rows go."""

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from bundle.atomic_file import atomic_write
from bundle.errors import TridentError
from trident.gpu_check.report import Row, Value

DeviceName = Literal["cuda", "cpu"]
MODELS: Final = ("efficientnet_lite0", "resnet50")


class StepSkippedError(TridentError):
    """The step cannot run on this machine; the message is the reason."""


class CheckSettings(BaseModel):
    """The settings of one check.

    Args:
        quick: small sizes and short times: shows that the code runs.
        work: folder for bundles, stacks and other intermediate files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: DeviceName
    work: Path
    quick: bool = False
    models: tuple[str, ...] = MODELS
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    servers: tuple[Literal["fastapi", "torchserve", "triton"], ...] = ("fastapi", "torchserve", "triton")
    workers: tuple[int, ...] = (1, 2, 4)
    max_batch_size: int = Field(default=32, ge=1, le=1024)
    concurrency: tuple[int, ...] = (1, 16, 64, 128)
    image_size: tuple[int, int] = (500, 375)
    step_timeout_s: float = Field(default=1800.0, gt=0)


class StepRows:
    """Rows and notes of a running step, written to a file at every change: a step that is killed keeps them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rows: list[Row] = []
        self._notes: list[str] = []

    def add(self, **columns: Value) -> None:
        """Add a row; an underscore in a column's name becomes a space."""
        self._rows.append({name.replace("_", " "): value for name, value in columns.items()})
        self._write()

    def skip(self, note: str) -> None:
        """Note a part of the step that was skipped, and the reason."""
        self._notes.append(note)
        self._write()

    def _write(self) -> None:
        atomic_write(self._file, StoredRows(rows=tuple(self._rows), notes=tuple(self._notes)).model_dump_json())


class StoredRows(BaseModel):
    """The file of a step. `skipped`: the reason why the whole step was skipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str | None = None


def short(error: Any) -> str:
    """The first line of an error's message, for a table or a note."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
