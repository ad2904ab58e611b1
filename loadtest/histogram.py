"""Latency histograms (HdrHistogram, nanoseconds), and the percentiles that may be reported from them."""

import functools
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

# 1 us to 10 minutes with 3 significant digits: latencies are exact to 0.1 %.
_LOWEST_NS: Final = 1_000
_HIGHEST_NS: Final = 600 * 10**9
_DIGITS: Final = 3


def new_histogram() -> HdrHistogram:
    """An empty histogram of nanoseconds."""
    return HdrHistogram(_LOWEST_NS, _HIGHEST_NS, _DIGITS)


def decode_histogram(encoded: str) -> HdrHistogram:
    """Decode a histogram (base64, V2 compressed), as recordings hold it."""
    histogram = new_histogram()
    histogram.decode_and_add(encoded)
    return histogram


def merged(encoded: Iterable[str]) -> HdrHistogram:
    """The sum of several encoded histograms."""
    histogram = new_histogram()
    for one in encoded:
        histogram.add(decode_histogram(one))
    return histogram


def counts_of(histogram: HdrHistogram) -> npt.NDArray[np.int64]:
    """How many values each slot holds, int64 `[slots]`. The library's own loops over slots are a hundred times slower."""
    return np.ctypeslib.as_array(histogram.counts)


def value_of(histogram: HdrHistogram, slot: int) -> int:
    """The highest value (ns) that a slot stands for."""
    return int(histogram.get_highest_equivalent_value(histogram.get_value_from_index(slot)))


def percentile_ns(histogram: HdrHistogram, percentile: float) -> int:
    """A percentile, from any number of values; 0 if there are none."""
    if not histogram.total_count:
        return 0
    wanted = histogram.get_target_count_at_percentile(percentile)
    return value_of(histogram, int(np.searchsorted(np.cumsum(counts_of(histogram)), wanted)))


@functools.cache
def min_samples(percentile: float, confidence: float = 0.99) -> int:
    """The fewest samples from which a percentile may be reported: 64 for p90, 662 for p99.

    The smallest n with P(at most one of n samples lies above the percentile) <= 1 - confidence, as in MLPerf's early
    stopping (https://github.com/mlcommons/inference_policies, appendix "early stopping").
    """
    above = 1 - percentile / 100
    n = 2
    while (1 - above) ** n + n * above * (1 - above) ** (n - 1) > 1 - confidence:
        n += 1 if n < 10_000 else n // 1000
    return n


def percentile_s(histogram: HdrHistogram, percentile: float) -> float | None:
    """A percentile in seconds; None if there are fewer than `min_samples`."""
    if histogram.total_count < min_samples(percentile):
        return None
    return percentile_ns(histogram, percentile) / 1e9
