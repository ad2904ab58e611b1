"""When requests arrive: the whole schedule of a run, made before it begins."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from loadtest.load import Arrivals, OpenLoop

Seconds = npt.NDArray[np.float64]


def schedule(loop: OpenLoop, seed: int, share: float = 1.0) -> Seconds:
    """The instants of all arrivals, float64 `[n]`, ascending, in seconds from the start.

    A Poisson process given its number of arrivals is uniform, but its number is random: both are drawn, phase by phase.

    Args:
        seed: the same seed gives the same schedule.
        share: the part of every rate that this process makes (a sum of Poisson processes is one).
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
    """Arrivals of a warm-up, which ends when it ends: instants from `start` on, in seconds."""
    draw = np.random.default_rng(seed)
    at = start
    while True:
        gaps = draw.exponential(1 / rate, 256) if arrivals == "poisson" else np.full(256, 1 / rate)
        for gap in gaps.tolist():
            at += gap
            yield at
