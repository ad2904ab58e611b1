"""Percentiles that say when they cannot be told, confidence intervals over rounds, and what counts as a difference."""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from loadtest.generator.recording import decode_histogram, new_histogram

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
LEAST_ROUNDS: Final = 3

Floats = npt.NDArray[np.float64]


@functools.cache
def min_samples(percentile: float, confidence: float = 0.99) -> int:
    """The fewest samples from which a percentile may be reported: 64 for the 90th, 662 for the 99th.

    The smallest n with P(at most one of n samples lies above the percentile) <= 1 - confidence, as MLPerf's early
    stopping has it (https://github.com/mlcommons/inference_policies, appendix "early stopping").
    """
    above = 1 - percentile / 100
    n = 2
    while (1 - above) ** n + n * above * (1 - above) ** (n - 1) > 1 - confidence:
        n += 1 if n < 10_000 else n // 1000
    return n


def percentile_s(histogram: HdrHistogram, percentile: float) -> float | None:
    """A percentile in seconds, or None from too few samples."""
    if histogram.total_count < min_samples(percentile):
        return None
    return float(histogram.get_value_at_percentile(percentile)) / 1e9


def merged(encoded: Iterable[str]) -> HdrHistogram:
    """One histogram of several recordings."""
    histogram = new_histogram()
    for one in encoded:
        histogram.add(decode_histogram(one))
    return histogram


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean; nan of nothing."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else math.nan


@dataclass(frozen=True)
class Interval:
    """Where a value lies, with 95 % confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A value from several rounds; `draws` are the same statistic of resampled rounds, None from too few of them.

    Draws of estimates over equally many rounds are paired: the same draw took the same rounds.
    """

    value: float
    rounds: int
    draws: Floats | None = None

    @property
    def interval(self) -> Interval | None:
        """None from fewer than LEAST_ROUNDS rounds."""
        return _interval(self.draws, self.rounds) if self.draws is not None else None

    def ratio(self, other: "Estimate") -> "Estimate":
        """This over the other."""
        draws = self.draws / other.draws if self.draws is not None and other.draws is not None else None
        return Estimate(self.value / other.value, min(self.rounds, other.rounds), draws)

    def ties(self, other: "Estimate") -> bool:
        """Whether the two cannot be told apart: one is inside the interval of their ratio, or there is none."""
        interval = self.ratio(other).interval
        return interval is None or not (interval.low > 1 or interval.high < 1)  # NaN (0 / 0) tells nothing either


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean of one value per round."""
    column = np.asarray(values, float)
    weights = _draws(len(column))
    draws = weights @ column / len(column) if weights is not None else None
    return Estimate(mean(values), len(column), draws)


def percentile_of(encoded: Sequence[str], percentile: float) -> Estimate | None:
    """A percentile, in seconds, of all rounds' requests together; `encoded`: a histogram per round. None from too few
    requests.
    """
    value = percentile_s(merged(encoded), percentile)
    if value is None:
        return None
    weights = _draws(len(encoded))
    draws = _percentile_draws(encoded, percentile, weights) if weights is not None else None
    return Estimate(value, len(encoded), draws)


def _draws(rounds: int) -> Floats | None:
    """How often each round was drawn, float64 `[RESAMPLES, rounds]`: Efron's bootstrap. Whole rounds are resampled, for the
    requests of one round are not independent of each other.
    """
    if rounds < LEAST_ROUNDS:
        return None
    return np.random.default_rng(0).multinomial(rounds, np.full(rounds, 1 / rounds), RESAMPLES).astype(float)


def _interval(draws: Floats, rounds: int) -> Interval:
    """The percentile interval of the draws. With n rounds it is too narrow by about sqrt((n - 1) / n), so it is widened
    around its centre by the inverse (Hesterberg, "What teachers should know about the bootstrap", 2015, section 3.2).
    """
    tail = 100 * (1 - CONFIDENCE) / 2
    low, centre, high = np.percentile(draws, [tail, 50, 100 - tail])
    wider = math.sqrt(rounds / (rounds - 1))
    # What is measured here (seconds, rates, their ratios) is never negative.
    return Interval(max(0.0, float(centre - (centre - low) * wider)), float(centre + (high - centre) * wider))


def _percentile_draws(encoded: Sequence[str], percentile: float, weights: Floats) -> Floats:
    rounds = [_counts(one) for one in encoded]
    values = np.unique(np.concatenate([seen for seen, _ in rounds]))
    counts = np.zeros((len(rounds), values.size))
    for row, (seen, count) in zip(counts, rounds, strict=True):
        row[np.searchsorted(values, seen)] = count
    cumulative = np.cumsum(weights @ counts, axis=1)
    wanted = np.ceil(cumulative[:, -1:] * percentile / 100 - 1e-9)
    place = np.minimum((cumulative < wanted).sum(axis=1), values.size - 1)
    found: Floats = values[place] / 1e9
    return found


def _counts(encoded: str) -> tuple[Floats, Floats]:
    """The values (ns) of a histogram, and how often each occurs."""
    histogram = decode_histogram(encoded)
    counts = np.ctypeslib.as_array(histogram.counts)  # its own iterators take a hundred times as long
    seen = np.flatnonzero(counts)
    values = [histogram.get_highest_equivalent_value(histogram.get_value_from_index(int(index))) for index in seen]
    return np.array(values, float), counts[seen].astype(float)
