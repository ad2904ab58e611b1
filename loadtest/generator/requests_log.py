"""A row per request: when it was scheduled, sent, first answered and done, and what came back.

Rows are appended to plain columns while the load runs; all arithmetic waits until it is over.
"""

import io
import os
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from serving.clients.http_client import parse_server_timing

MAX_KINDS_OF_ERROR: Final = 20
STAGES: Final = ("decode", "queue", "inference", "total")

Rows = npt.NDArray[Any]
ROW: Final = np.dtype(
    [
        ("scheduled_ns", "i8"),
        ("sent_ns", "i8"),
        ("first_byte_ns", "i8"),  # 0: none came
        ("done_ns", "i8"),
        ("status", "i2"),  # HTTP; 0: no answer
        ("bytes", "i4"),
        ("fault", "i2"),  # 0: a right answer; else an index into `faults`
        *((f"{stage}_s", "f4") for stage in STAGES),  # Server-Timing; nan: not said
    ]
)


class RequestsLog:
    """The rows of one process, while the load runs."""

    def __init__(self) -> None:
        self._times = array("q")
        self._answers = array("q")
        self._timings: list[bytes] = []
        self._faults: dict[str, int] = {"": 0}

    def add(
        self,
        scheduled_ns: int,
        sent_ns: int,
        first_byte_ns: int,
        done_ns: int,
        status: int,
        size: int,
        fault: str,
        server_timing: bytes,
    ) -> None:
        """One request. `fault` is '' for a right answer."""
        number = self._faults.get(fault)
        if number is None:
            key = fault if len(self._faults) <= MAX_KINDS_OF_ERROR else "(other errors)"
            number = self._faults.setdefault(key, len(self._faults))
        self._times.extend((scheduled_ns, sent_ns, first_byte_ns, done_ns))
        self._answers.extend((status, size, number))
        self._timings.append(server_timing)

    def finish(self) -> "Requests":
        """All rows as arrays."""
        rows = np.zeros(len(self._timings), ROW)
        times = np.frombuffer(self._times, np.int64).reshape(-1, 4) if rows.size else np.zeros((0, 4), np.int64)
        answers = np.frombuffer(self._answers, np.int64).reshape(-1, 3) if rows.size else np.zeros((0, 3), np.int64)
        for column, name in enumerate(("scheduled_ns", "sent_ns", "first_byte_ns", "done_ns")):
            rows[name] = times[:, column]
        for column, name in enumerate(("status", "bytes", "fault")):
            rows[name] = answers[:, column]
        for stage in STAGES:
            rows[f"{stage}_s"] = np.nan
        for index, header in enumerate(self._timings):
            if header:
                timing = parse_server_timing(header.decode("latin-1"))
                for stage in STAGES:
                    rows[f"{stage}_s"][index] = timing.get(stage, np.nan)
        return Requests(rows, tuple(self._faults))


@dataclass(frozen=True)
class Requests:
    """Rows of dtype `ROW`, and the faults that they point at."""

    rows: Rows
    faults: tuple[str, ...]

    def errors(self) -> dict[str, int]:
        """How often each fault occurred."""
        counts = Counter(self.rows["fault"].tolist())
        return {self.faults[number]: count for number, count in counts.most_common() if number}

    def to_bytes(self) -> bytes:
        """For sending to another process."""
        buffer = io.BytesIO()
        self._save(buffer)
        return buffer.getvalue()

    def save(self, path: Path) -> None:
        """Keep as .npz, whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            self._save(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _save(self, file: Any) -> None:
        np.savez_compressed(file, rows=self.rows, faults=np.array(self.faults))

    @classmethod
    def load(cls, source: Path | bytes) -> "Requests":
        """What `save` or `to_bytes` made."""
        with np.load(io.BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False) as content:
            return cls(content["rows"], tuple(content["faults"].tolist()))

    @classmethod
    def joined(cls, parts: list["Requests"]) -> "Requests":
        """Several processes' rows as one, by the scheduled instant."""
        faults: dict[str, int] = {"": 0}
        renumbered = []
        for part in parts:
            numbers = np.array([faults.setdefault(fault, len(faults)) for fault in part.faults], np.int16)
            rows = part.rows.copy()
            rows["fault"] = numbers[rows["fault"]]
            renumbered.append(rows)
        rows = np.concatenate(renumbered)
        return cls(rows[np.argsort(rows["scheduled_ns"], kind="stable")], tuple(faults))
