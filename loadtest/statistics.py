"""Percentiles that say when they cannot be told."""

import functools
import math
from collections.abc import Iterable

from hdrh.histogram import HdrHistogram

from loadtest.recording import decode_histogram, new_histogram


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
