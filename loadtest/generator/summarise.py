"""Rows of requests -> a `Recording`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtest.generator.recording import GeneratorHealth, Recording, Timeline, WarmUpReport
from loadtest.generator.requests_log import STAGES, Requests, Rows
from loadtest.histogram import new_histogram

_LONGEST_TIMELINE = 120
_SHORTEST_BIN_S = 0.1


@dataclass(frozen=True)
class Window:
    """The measured part of a run, in perf_counter seconds."""

    from_s: float
    until_s: float

    @property
    def seconds(self) -> float:
        """The length of the window."""
        return self.until_s - self.from_s


def within(requests: Requests, window: Window) -> Requests:
    """The requests that were scheduled within the window."""
    at = requests.rows["scheduled_ns"]
    return Requests(requests.rows[(at >= window.from_s * 1e9) & (at < window.until_s * 1e9)], requests.faults)


def summarise(requests: Requests, window: Window, warm_up: WarmUpReport, health: GeneratorHealth) -> Recording:
    """Summarise one run.

    Args:
        requests: all rows, including the warm-up's: answers to its last requests count as throughput.
    """
    scheduled = within(requests, window)
    rows = scheduled.rows
    correct = rows[rows["fault"] == 0]
    latency_ns = correct["done_ns"] - correct["scheduled_ns"]
    done = requests.rows[requests.rows["fault"] == 0]["done_ns"]
    responded = correct[correct["first_byte_ns"] != 0]
    return Recording(
        seconds=window.seconds,
        answered=len(correct),
        failed=len(rows) - len(correct),
        wrong=scheduled.wrong(),
        completed=int(((done >= window.from_s * 1e9) & (done < window.until_s * 1e9)).sum()),
        errors=scheduled.errors(),
        latencies=histogram_of(latency_ns),
        latencies_from_sent=histogram_of(correct["done_ns"] - correct["sent_ns"]),
        mean_latency_s=_mean_s(latency_ns),
        max_latency_s=float(latency_ns.max()) / 1e9 if correct.size else 0.0,
        first_byte_mean_s=_mean_s(responded["first_byte_ns"] - responded["scheduled_ns"]),
        bytes_received=int(correct["bytes"].sum()),
        stages_s=_stages(correct),
        timeline=_timeline(rows, window),
        warm_up=warm_up,
        generator=health,
    )


def histogram_of(latencies_ns: npt.NDArray[np.int64]) -> str:
    """Encode a histogram. Values are rounded to four digits first, so that each is recorded only once."""
    histogram = new_histogram()
    if latencies_ns.size:
        unit = 10 ** np.maximum(0, np.floor(np.log10(np.maximum(latencies_ns, 1))).astype(np.int64) - 3)
        for value, count in zip(*np.unique(latencies_ns // unit * unit, return_counts=True), strict=True):
            histogram.record_value(int(value), int(count))
    return str(histogram.encode().decode())


def lags_ms(rows: Rows) -> tuple[float, float]:
    """How late requests were sent: p50 and p99 in ms."""
    if not rows.size:
        return 0.0, 0.0
    p50, p99 = np.percentile(rows["sent_ns"] - rows["scheduled_ns"], [50, 99]) / 1e6
    return float(p50), float(p99)


def _mean_s(nanoseconds: npt.NDArray[np.int64]) -> float:
    return float(nanoseconds.mean()) / 1e9 if nanoseconds.size else 0.0


def _stages(correct: Rows) -> dict[str, float]:
    means = {stage: correct[f"{stage}_s"][~np.isnan(correct[f"{stage}_s"])] for stage in STAGES}
    return {stage: float(values.mean()) for stage, values in means.items() if values.size}


def _timeline(rows: Rows, window: Window) -> Timeline:
    bin_s = max(_SHORTEST_BIN_S, window.seconds / _LONGEST_TIMELINE)
    bins = max(1, int(np.ceil(round(window.seconds / bin_s, 6))))
    place = np.clip(((rows["scheduled_ns"] / 1e9 - window.from_s) / bin_s).astype(int), 0, bins - 1)
    failed = rows["fault"] != 0
    latency_ms = (rows["done_ns"] - rows["scheduled_ns"]) / 1e6
    p50: list[float | None] = []
    longest: list[float | None] = []
    for number in range(bins):
        here: Any = latency_ms[(place == number) & ~failed]
        p50.append(round(float(np.median(here)), 4) if here.size else None)
        longest.append(round(float(here.max()), 4) if here.size else None)
    return Timeline(
        bin_s=bin_s,
        scheduled=tuple(np.bincount(place, minlength=bins).tolist()),
        failed=tuple(np.bincount(place[failed], minlength=bins).tolist()),
        p50_ms=tuple(p50),
        max_ms=tuple(longest),
    )
