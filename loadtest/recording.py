"""What one run recorded: a histogram of latencies in nanoseconds, counts, and how well the generator itself did."""

from typing import Final

from hdrh.histogram import HdrHistogram
from pydantic import BaseModel, ConfigDict

# 1 us to 10 minutes, at 3 significant digits: latencies are kept to 0.1 %, not to milliseconds.
_LOWEST_NS: Final = 1_000
_HIGHEST_NS: Final = 600 * 10**9
_DIGITS: Final = 3


def new_histogram() -> HdrHistogram:
    """An empty histogram of nanoseconds."""
    return HdrHistogram(_LOWEST_NS, _HIGHEST_NS, _DIGITS)


def decode_histogram(encoded: str) -> HdrHistogram:
    """The histogram in a `Recording`."""
    histogram = new_histogram()
    histogram.decode_and_add(encoded)
    return histogram


class GeneratorHealth(BaseModel):
    """Whether the generator could keep up: a saturated generator measures itself.

    `cpu`: its CPU seconds per second of the run. `lag_p99_ms`: how late its event loop served a timer, 99th percentile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: float
    lag_p99_ms: float

    @property
    def fault(self) -> str:
        """'' if the measurement can be trusted."""
        return f"the generator used {self.cpu:.0%} of its core" if self.cpu > 0.95 else ""


class Recording(BaseModel):
    """One run. Latencies are those of right answers, from sending the request to the last byte of the answer.

    `latencies` is a base64 HdrHistogram (V2 compressed) in nanoseconds; `errors` counts each kind of failed or wrong
    answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    answered: int
    failed: int
    errors: dict[str, int]
    latencies: str
    max_latency_s: float
    generator: GeneratorHealth
