"""The schedule of a run: all arrival times, computed before the run starts."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from loadtest.load import Arrivals, OpenLoop

Seconds = npt.NDArray[np.float64]


def schedule(loop: OpenLoop, seed: int, share: float = 1.0) -> Seconds:
    """All arrival times, float64 `[n]`, ascending, in seconds from the start.

    For each phase of a Poisson process the number of arrivals is drawn, then their times uniformly.

    Args:
        seed: the same seed gives the same schedule.
        share: this process's part of every rate (the sum of Poisson processes is a Poisson process).
    """
    draw = np.random.default_rng(seed)
    start, parts = 0.0, []
    for phase in loop.phases:
        rate = phase.rate * share
        if loop.arrivals == "poisson":
            count = int(draw.poisson(rate * phase.duration_s))
            parts.append(start + np.sort(draw.uniform(0, phase.duration_s, count)))
        else:
            parts.append(start + np.arange(draw.uniform(0, 1), rate * phase.duration_s) / rate)
        start += phase.duration_s
    return np.concatenate(parts)


def endless(rate: float, arrivals: Arrivals, seed: int, start: float) -> Iterator[float]:
    """Arrival times of a warm-up of unknown length, in seconds, from `start` on."""
    draw = np.random.default_rng(seed)
    at = start
    while True:
        gaps = draw.exponential(1 / rate, 256) if arrivals == "poisson" else np.full(256, 1 / rate)
        for gap in gaps.tolist():
            at += gap
            yield at
