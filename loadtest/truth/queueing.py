"""Waiting times of one server with a queue: theory (M/M/1, M/D/1) and simulation (Lindley's recursion).

Formulas: D. Gross, C. M. Harris, "Fundamentals of Queueing Theory"; the distribution of M/D/1's waiting time is Erlang's
(1909), as in V. B. Iversen, "Teletraffic Engineering Handbook", section 13.
"""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
Service = Literal["exponential", "deterministic"]


def mean_wait(service: Service, mean_s: float, utilisation: float) -> float:
    """Mean waiting time in seconds, service not included (Pollaczek and Khinchine)."""
    wait = utilisation * mean_s / (1 - utilisation)
    return wait if service == "exponential" else wait / 2


def wait_percentile(service: Service, mean_s: float, utilisation: float, percentile: float) -> float:
    """The waiting time, in seconds, that `percentile` % of the requests do not exceed."""
    share = percentile / 100
    if service == "exponential":  # P(W > t) = rho exp(-(1 - rho) t / s)
        return max(0.0, mean_s / (1 - utilisation) * math.log(utilisation / (1 - share)))
    low, high = 0.0, mean_s
    while _md1_within(high / mean_s, utilisation) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _md1_within(middle / mean_s, utilisation) < share else (low, middle)
    return high


def _md1_within(t: float, utilisation: float) -> float:
    """P(W <= t) of M/D/1, t in service times: (1 - rho) sum_{k=0}^{[t]} (rho (k - t))^k / k! exp(rho (t - k)).

    The terms alternate: their rounding errors stay below 1e-6 up to some 20 service times at the loads used here.
    """
    terms = [
        (utilisation * (k - t)) ** k / math.factorial(k) * math.exp(utilisation * (t - k)) for k in range(int(t) + 1)
    ]
    return (1 - utilisation) * math.fsum(terms)


def waits(arrivals_s: Seconds, services_s: Seconds, stall: tuple[float, float] | None = None) -> Seconds:
    """The waiting time of each request in seconds, by Lindley's recursion.

    Args:
        arrivals_s: ascending.
        stall: start and end of a time in which no service starts.
    """
    free_at, waited = -math.inf, np.empty(len(arrivals_s))
    for index, (arrival, service) in enumerate(zip(arrivals_s.tolist(), services_s.tolist(), strict=True)):
        start = max(arrival, free_at)
        if stall is not None and stall[0] <= start < stall[1]:
            start = stall[1]
        waited[index] = start - arrival
        free_at = start + service
    return waited
