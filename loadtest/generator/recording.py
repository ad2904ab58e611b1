"""What one run recorded: histograms of latencies in nanoseconds, counts, a timeline, and how the generator itself did."""

from typing import Final

from hdrh.histogram import HdrHistogram
from pydantic import BaseModel, ConfigDict

# 1 us to 10 minutes, at 3 significant digits: latencies are kept to 0.1 %, not to milliseconds.
_LOWEST_NS: Final = 1_000
_HIGHEST_NS: Final = 600 * 10**9
_DIGITS: Final = 3

MAX_CPU: Final = 0.95
MAX_LAG_MS: Final = 1.0
MAX_LAG_SHARE: Final = 0.1


def new_histogram() -> HdrHistogram:
    """An empty histogram of nanoseconds."""
    return HdrHistogram(_LOWEST_NS, _HIGHEST_NS, _DIGITS)


def decode_histogram(encoded: str) -> HdrHistogram:
    """The histogram in a `Recording`."""
    histogram = new_histogram()
    histogram.decode_and_add(encoded)
    return histogram


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GeneratorHealth(_Part):
    """Whether the generator could keep up: a saturated generator measures itself.

    `cpu`: CPU seconds per second of its busiest process. `lag_p50_ms`, `lag_p99_ms`: how late requests left (open loop)
    or its event loop served a timer (closed loop). `waited_for_connection`: arrivals that found `max_in_flight` others
    under way. `unsent`: scheduled arrivals that never left. `nice`: its priority; it is raised (-10) where it shares cores
    with the servers, if the system lets it.
    """

    cpu: float
    lag_p50_ms: float
    lag_p99_ms: float
    waited_for_connection: int = 0
    unsent: int = 0
    nice: int = 0


class WarmUpReport(_Part):
    """How long the load ran before it was measured, and whether the stated test found it stable."""

    seconds: float
    stable: bool


class Timeline(_Part):
    """The run in bins of `bin_s` seconds, by the instant at which a request was scheduled; latencies in ms, None where
    nothing was answered.
    """

    bin_s: float
    scheduled: tuple[int, ...]
    failed: tuple[int, ...]
    p50_ms: tuple[float | None, ...]
    max_ms: tuple[float | None, ...]


class Recording(_Part):
    """One run.

    Latencies are those of right answers, to the last byte: in `latencies` from the scheduled instant, in
    `latencies_from_sent` from the instant the request left (in a closed loop the two are the same); both base64
    HdrHistograms (V2 compressed) of nanoseconds. `answered` and `failed` count requests scheduled within the run,
    `completed` right answers that came within it; `wrong` of the failed were answered, with something else than the
    golden answer. `stages_s`: mean seconds by stage as the server's Server-Timing header has it.
    """

    seconds: float
    answered: int
    failed: int
    wrong: int
    completed: int
    errors: dict[str, int]
    latencies: str
    latencies_from_sent: str
    mean_latency_s: float
    max_latency_s: float
    first_byte_mean_s: float
    bytes_received: int
    stages_s: dict[str, float]
    timeline: Timeline
    warm_up: WarmUpReport
    generator: GeneratorHealth

    @property
    def requests_per_s(self) -> float:
        """Right answers per second."""
        return self.completed / self.seconds

    @property
    def offered_per_s(self) -> float:
        """Requests scheduled per second."""
        return (self.answered + self.failed) / self.seconds

    def fault(self, *, open_loop: bool) -> str:
        """'' if the run is valid, else why it is not."""
        if self.wrong:
            first = next((error for error in self.errors if error.startswith("wrong answer")), "wrong answers")
            return f"{self.wrong} of {self.answered + self.failed} answers were wrong ({first})"
        health = self.generator
        if not open_loop and health.cpu > MAX_CPU:
            return f"the generator was saturated: it used {health.cpu:.0%} of its core"
        p99_ms = self.percentile_ms(99)
        if open_loop and (health.unsent or health.lag_p99_ms > max(MAX_LAG_MS, MAX_LAG_SHARE * p99_ms)):
            late = f"1 % of the requests left at least {health.lag_p99_ms:.1f} ms late"
            never = f", {health.unsent} never" if health.unsent else ""
            return f"the generator could not keep to its schedule: {late}{never}; it used {health.cpu:.0%} of its core"
        return ""

    def percentile_ms(self, percentile: float) -> float:
        """In ms, whatever the number of requests; for reporting use `statistics.percentile_s`."""
        return float(decode_histogram(self.latencies).get_value_at_percentile(percentile)) / 1e6
