"""Percentiles, intervals and ties."""

import numpy as np
import pytest

from loadtest.analysis.estimate import mean_of, percentile_of
from loadtest.generator.summarise import histogram_of
from loadtest.histogram import decode_histogram, merged, min_samples, new_histogram, percentile_ns, percentile_s
from loadtest.report.tables import theil_sen
from tests.loadtest.lab import recording


@pytest.mark.parametrize(("percentile", "samples"), [(90, 64), (99, 662), (99.9, 6636)])
def test_the_fewest_samples_are_mlperfs(percentile: float, samples: int) -> None:
    assert min_samples(percentile) == samples


def test_percentiles_are_exact_to_a_thousandth_and_refused_from_too_few() -> None:
    histogram = merged([recording([i / 1e6 for i in range(1, 1001)]).latencies])
    assert percentile_s(histogram, 50) == pytest.approx(500e-6, rel=2e-3)
    assert percentile_s(histogram, 99) == pytest.approx(990e-6, rel=2e-3)
    assert percentile_s(histogram, 99.9) is None
    assert percentile_s(merged([recording([0.001] * 661).latencies]), 99) is None
    assert percentile_s(merged([recording([0.001] * 662).latencies]), 99) == pytest.approx(0.001, rel=2e-3)


@pytest.mark.parametrize("samples", [1, 3, 700, 20_000])
def test_percentiles_are_those_of_the_library(samples: int) -> None:
    latencies = np.random.default_rng(samples).lognormal(0, 1, samples) * 1e6
    histogram = decode_histogram(histogram_of(latencies.astype(np.int64)))
    for percentile in (1, 50, 90, 99, 99.9, 100):
        assert percentile_ns(histogram, percentile) == histogram.get_value_at_percentile(percentile)


def test_no_values_have_no_percentile() -> None:
    assert percentile_ns(new_histogram(), 50) == 0


def test_histograms_keep_microseconds_and_minutes() -> None:
    histogram = decode_histogram(histogram_of(np.array([12_300, 300 * 10**9])))
    assert histogram.get_min_value() == pytest.approx(12_300, rel=2e-3)
    assert histogram.get_max_value() == pytest.approx(300e9, rel=2e-3)


def test_merging_adds() -> None:
    assert merged([recording([0.1] * 3).latencies, recording([0.2] * 4).latencies]).total_count == 7


def test_intervals_hold_what_they_promise() -> None:
    """The 95 % interval of a mean over 5 rounds contains the true mean about as often as it says. The percentile
    bootstrap is known to be a little narrow from so few.
    """
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        interval = mean_of(draw.normal(10, 1, 5).tolist()).interval
        assert interval is not None
        inside += interval.low <= 10 <= interval.high
    assert 0.85 <= inside / 300 <= 0.99


def test_an_interval_needs_three_rounds_and_a_tie_has_none_without() -> None:
    assert mean_of([1.0, 2.0]).interval is None
    assert mean_of([1.0, 2.0]).ties(mean_of([5.0, 6.0]))
    steady, other = mean_of([1.0, 1.01, 0.99]), mean_of([1.2, 1.21, 1.19])
    assert not steady.ties(other)
    assert steady.ties(mean_of([1.02, 0.97, 1.01]))
    rounds = [recording([0.001 + i / 1e6 for i in range(700)]).latencies for _ in range(3)]
    estimate = percentile_of(rounds, 99)
    assert estimate is not None
    assert estimate.interval is not None
    assert estimate.interval.low <= estimate.value * 1.001
    assert estimate.interval.high >= estimate.value * 0.999


def test_rounds_are_paired_in_a_ratio() -> None:
    """A drift that hits both lanes in the same rounds does not hide the difference between them."""
    drift = np.array([1.0, 1.5, 0.7, 1.2])
    ratio = mean_of((drift * 1.1).tolist()).ratio(mean_of(drift.tolist())).interval
    assert ratio is not None
    assert ratio.low == pytest.approx(1.1)
    assert ratio.high == pytest.approx(1.1)


def test_outliers_do_not_move_the_drift() -> None:
    points = [(float(x), 2.0 + 0.1 * x) for x in range(20)]
    points[7] = (7.0, 900.0)
    assert theil_sen(points) == pytest.approx(0.1)
