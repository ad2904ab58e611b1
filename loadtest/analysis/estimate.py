"""Values over several rounds, with confidence intervals, and what counts as a difference."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from loadtest.histogram import counts_of, decode_histogram, merged, percentile_s, value_of

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
LEAST_ROUNDS: Final = 3

Floats = npt.NDArray[np.float64]


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of at least one value."""
    listed = list(values)
    return math.fsum(listed) / len(listed)


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A value over several rounds.

    Args:
        draws: the same statistic of resampled rounds; None from fewer than LEAST_ROUNDS rounds. Estimates over the same number
            of rounds are paired: the same draw took the same rounds.
    """

    value: float
    rounds: int
    draws: Floats | None = None

    @property
    def interval(self) -> Interval | None:
        """The confidence interval; None from fewer than LEAST_ROUNDS rounds."""
        return _interval(self.draws, self.rounds) if self.draws is not None else None

    def ratio(self, other: "Estimate") -> "Estimate":
        """This estimate divided by the other."""
        draws = self.draws / other.draws if self.draws is not None and other.draws is not None else None
        return Estimate(self.value / other.value, min(self.rounds, other.rounds), draws)

    def ties(self, other: "Estimate") -> bool:
        """Whether the two do not differ significantly: 1 is inside the interval of their ratio, or there is no interval."""
        interval = self.ratio(other).interval
        return interval is None or not (interval.low > 1 or interval.high < 1)  # 0 / 0 is no difference


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean of one value per round."""
    column = np.asarray(values, float)
    weights = _draws(len(column))
    draws = weights @ column / len(column) if weights is not None else None
    return Estimate(mean(values), len(column), draws)


def percentile_of(encoded: Sequence[str], percentile: float) -> Estimate | None:
    """A percentile in seconds of the requests of all rounds; None from too few requests.

    Args:
        encoded: one histogram per round.
    """
    value = percentile_s(merged(encoded), percentile)
    if value is None:
        return None
    weights = _draws(len(encoded))
    draws = _percentile_draws(encoded, percentile, weights) if weights is not None else None
    return Estimate(value, len(encoded), draws)


def _draws(rounds: int) -> Floats | None:
    """How often each round was drawn, float64 `[RESAMPLES, rounds]`: Efron's bootstrap. Whole rounds are resampled because
    the requests of one round are not independent.
    """
    if rounds < LEAST_ROUNDS:
        return None
    return np.random.default_rng(0).multinomial(rounds, np.full(rounds, 1 / rounds), RESAMPLES).astype(float)


def _interval(draws: Floats, rounds: int) -> Interval:
    """The percentile interval of the draws. With n rounds it is too narrow by about sqrt((n - 1) / n); it is widened around
    its centre by the inverse (Hesterberg, "What teachers should know about the bootstrap", 2015, section 3.2).
    """
    tail = 100 * (1 - CONFIDENCE) / 2
    low, centre, high = np.percentile(draws, [tail, 50, 100 - tail])
    wider = math.sqrt(rounds / (rounds - 1))
    # All values here (seconds, rates, their ratios) are positive.
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
    """The values (ns) of a histogram and their counts."""
    histogram = decode_histogram(encoded)
    counts = counts_of(histogram)
    seen = np.flatnonzero(counts)
    values = [value_of(histogram, int(slot)) for slot in seen]
    return np.array(values, float), counts[seen].astype(float)
