"""A row per request: when it was scheduled, sent, first answered and done, and what the response was.

Rows are appended to plain columns while the load runs; they are evaluated when it has ended.
"""

import io
import os
from array import array
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundle.golden import Fault
from loadtest.generator.request_set import KINDS, Kind
from serving.clients.http_client import parse_server_timing

MAX_KINDS_OF_ERROR: Final = 20
STAGES: Final = ("decode", "queue", "inference", "total")

Rows = npt.NDArray[Any]
ROW: Final = np.dtype(
    [
        ("scheduled_ns", "i8"),
        ("sent_ns", "i8"),
        ("first_byte_ns", "i8"),  # 0: no response
        ("done_ns", "i8"),
        ("status", "i2"),  # HTTP; 0: no response
        ("bytes", "i4"),
        ("fault", "i2"),  # 0: the expected response; else an index into `faults`
        ("kind", "i1"),  # an index into `KINDS`
        *((f"{stage}_s", "f4") for stage in STAGES),  # Server-Timing; nan: not in the header
    ]
)


class RequestsLog:
    """The rows of one process while the load runs."""

    def __init__(self) -> None:
        self._times = array("q")
        self._answers = array("q")
        self._timings: list[bytes] = []
        self._faults: dict[Fault | None, int] = {None: 0}

    def add(
        self,
        kind: Kind,
        scheduled_ns: int,
        sent_ns: int,
        first_byte_ns: int,
        done_ns: int,
        status: int,
        size: int,
        fault: Fault | None,
        server_timing: bytes,
    ) -> None:
        """Add a request. `fault`: None if the response was the expected one."""
        number = self._faults.get(fault)
        if number is None:
            assert fault is not None
            key = fault if len(self._faults) <= MAX_KINDS_OF_ERROR else replace(fault, message="(other errors)")
            number = self._faults.setdefault(key, len(self._faults))
        self._times.extend((scheduled_ns, sent_ns, first_byte_ns, done_ns))
        self._answers.extend((status, size, number, _KIND_NUMBERS[kind]))
        self._timings.append(server_timing)

    def finish(self) -> "Requests":
        """All rows as arrays."""
        rows = np.zeros(len(self._timings), ROW)
        times = np.frombuffer(self._times, np.int64).reshape(-1, 4) if rows.size else np.zeros((0, 4), np.int64)
        answers = np.frombuffer(self._answers, np.int64).reshape(-1, 4) if rows.size else np.zeros((0, 4), np.int64)
        for column, name in enumerate(("scheduled_ns", "sent_ns", "first_byte_ns", "done_ns")):
            rows[name] = times[:, column]
        for column, name in enumerate(("status", "bytes", "fault", "kind")):
            rows[name] = answers[:, column]
        for stage in STAGES:
            rows[f"{stage}_s"] = np.nan
        for index, header in enumerate(self._timings):
            if header:
                timing = parse_server_timing(header.decode("latin-1"))
                for stage in STAGES:
                    rows[f"{stage}_s"][index] = timing.get(stage, np.nan)
        return Requests(rows, tuple(self._faults))


_KIND_NUMBERS: Final = {kind: number for number, kind in enumerate(KINDS)}


@dataclass(frozen=True)
class Requests:
    """Rows of dtype `ROW`, and the faults to which they refer. The first fault is None."""

    rows: Rows
    faults: tuple[Fault | None, ...]

    def errors(self) -> dict[str, int]:
        """How often each fault occurred, most frequent first."""
        counts = Counter(self.rows["fault"].tolist())
        faults = [(self.faults[number], count) for number, count in counts.most_common()]
        return {_text(fault): count for fault, count in faults if fault is not None}

    def wrong(self) -> int:
        """How many requests were answered, but with a wrong answer."""
        numbers = [number for number, fault in enumerate(self.faults) if fault is not None and _is_wrong(fault)]
        return int(np.isin(self.rows["fault"], numbers).sum())

    def to_bytes(self) -> bytes:
        """Serialise, to send the rows to another process."""
        buffer = io.BytesIO()
        self._save(buffer)
        return buffer.getvalue()

    def save(self, path: Path) -> None:
        """Write a compressed .npz file; it is complete or absent."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            self._save(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _save(self, file: Any) -> None:
        known = [fault for fault in self.faults if fault is not None]
        kinds, messages = [fault.kind for fault in known], [fault.message for fault in known]
        np.savez_compressed(
            file, rows=self.rows, fault_kinds=np.array(kinds, np.str_), faults=np.array(messages, np.str_)
        )

    @classmethod
    def load(cls, source: Path | bytes) -> "Requests":
        """Read what `save` or `to_bytes` wrote."""
        with np.load(io.BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False) as content:
            pairs = zip(content["fault_kinds"].tolist(), content["faults"].tolist(), strict=True)
            return cls(content["rows"], (None, *(Fault(kind, message) for kind, message in pairs)))

    @classmethod
    def joined(cls, parts: list["Requests"]) -> "Requests":
        """The rows of several processes, sorted by scheduled time."""
        faults: dict[Fault | None, int] = {None: 0}
        renumbered = []
        for part in parts:
            numbers = np.array([faults.setdefault(fault, len(faults)) for fault in part.faults], np.int16)
            rows = part.rows.copy()
            rows["fault"] = numbers[rows["fault"]]
            renumbered.append(rows)
        rows = np.concatenate(renumbered)
        return cls(rows[np.argsort(rows["scheduled_ns"], kind="stable")], tuple(faults))


def _is_wrong(fault: Fault) -> bool:
    return fault.kind != "no-answer"


def _text(fault: Fault) -> str:
    return f"wrong answer: {fault}" if _is_wrong(fault) else str(fault)
