"""The recording of one run: latency histograms, counts, a timeline, and the generator's own health."""

from typing import Final

from pydantic import BaseModel, ConfigDict

from loadtest.histogram import decode_histogram, percentile_ns

MAX_CPU: Final = 0.95
MAX_LAG_MS: Final = 1.0
MAX_LAG_SHARE: Final = 0.1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GeneratorHealth(_Part):
    """Whether the generator kept up: the latencies of a saturated generator are its own.

    Args:
        cpu: CPU seconds per second of its busiest process.
        lag_p50_ms: how late requests were sent (open loop) or timers fired (closed loop); `lag_p99_ms` likewise.
        waited_for_connection: arrivals that had to wait because `max_in_flight` requests were in flight.
        unsent: scheduled arrivals that were never sent.
        nice: its priority, raised to -10 if it shares cores with the servers and may raise it.
    """

    cpu: float
    lag_p50_ms: float
    lag_p99_ms: float
    waited_for_connection: int = 0
    unsent: int = 0
    nice: int = 0


class WarmUpReport(_Part):
    """The length of the warm-up, and whether latency became stable (see `WarmUp`)."""

    seconds: float
    stable: bool


class Timeline(_Part):
    """The run in bins of `bin_s` seconds, by scheduled time. Latencies in ms; None: no answer in the bin."""

    bin_s: float
    scheduled: tuple[int, ...]
    failed: tuple[int, ...]
    p50_ms: tuple[float | None, ...]
    max_ms: tuple[float | None, ...]


class Recording(_Part):
    """One run.

    Latencies are those of correct answers, to the last byte.

    Args:
        answered: requests scheduled within the run and answered correctly; `failed`: all others.
        wrong: failed requests that got an answer, but a wrong one.
        completed: correct answers that arrived within the run.
        latencies: from the scheduled time; base64 HdrHistogram (V2 compressed) of nanoseconds.
        latencies_from_sent: from the time of sending; in a closed loop the same.
        stages_s: mean seconds by stage, from the server's Server-Timing header.
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
        """Correct answers per second."""
        return self.completed / self.seconds

    @property
    def offered_per_s(self) -> float:
        """Requests scheduled per second."""
        return (self.answered + self.failed) / self.seconds

    def invalid_reason(self, *, open_loop: bool) -> str | None:
        """Why the figures of this run must not be used; None if it is valid."""
        if self.wrong:
            first = next((error for error in self.errors if error.startswith("wrong answer")), "wrong answers")
            return f"{self.wrong} of {self.answered + self.failed} answers were wrong ({first})"
        health = self.generator
        if not open_loop and health.cpu > MAX_CPU:
            return f"the generator was saturated: it used {health.cpu:.0%} of its core"
        p99_ms = self.percentile_ms(99)
        if open_loop and (health.unsent or health.lag_p99_ms > max(MAX_LAG_MS, MAX_LAG_SHARE * p99_ms)):
            late = f"1 % of the requests were sent at least {health.lag_p99_ms:.1f} ms late"
            unsent = f", {health.unsent} were not sent" if health.unsent else ""
            return f"the generator did not keep its schedule: {late}{unsent}; it used {health.cpu:.0%} of its core"
        return None

    def percentile_ms(self, percentile: float) -> float:
        """A percentile in ms, from any number of requests; reports use `histogram.percentile_s`."""
        return percentile_ns(decode_histogram(self.latencies), percentile) / 1e6
