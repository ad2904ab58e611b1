"""slo: search for the highest rate of Poisson arrivals that meets the latency objective."""

import math
from collections.abc import Sequence
from typing import Final, Literal

from pydantic import Field

from loadtest.generator.recording import Recording
from loadtest.histogram import min_samples
from loadtest.load import Load, OpenLoop
from loadtest.scenarios.scenario import Loads, PastLoad, ScenarioSettings, capacity

_MARGIN: Final = 1.1  # more arrivals than needed: their number is random
_LONGEST_PROBE_S: Final = 120.0
_LOWEST_SHARE: Final = 0.02  # of the rate at which the search starts


class Slo(ScenarioSettings):
    """Objective: p`percentile` of all requests, measured from the scheduled time, is at most `slo_ms`. A failed request
    misses it.

    The rate is bisected to within `resolution`. Every probe lasts at least `duration_s`, and long enough to report its
    percentile (662 requests for p99), but at most two minutes. If the generator cannot offer a rate, the search continues
    below it. A wrong answer ends the search.
    """

    kind: Literal["slo"] = "slo"
    slo_ms: float = Field(default=50.0, gt=0)
    percentile: float = Field(default=99.0, gt=0, lt=100)
    resolution: float = Field(default=0.08, gt=0, lt=1)
    duration_s: float = Field(default=3.0, gt=0, le=3600)

    def loads(self, past: Sequence[PastLoad]) -> Loads:
        """The probes. Later rounds start at the rate that earlier rounds found."""
        found, _ = self.bracket([(one.load, one.recording) for one in past])
        if found:
            low, high, rate = 0.0, math.inf, found
        else:
            capacity_per_s = yield from capacity(self.kind, past)
            low, high, rate = 0.0, math.inf, (capacity_per_s or 1.0) * 0.8
        lowest, step = rate * _LOWEST_SHARE, 1.25
        while rate > lowest and (math.isinf(high) or high > low * (1 + self.resolution)):
            recording = yield self._probe(rate)
            if recording.wrong:
                return
            if self.held(recording) and recording.invalid_reason(open_loop=True) is None:
                low = rate
            else:
                high = rate
            if math.isinf(high):
                rate = low * step
            elif low == 0:
                rate, step = high / step, step * 1.25
            else:
                rate = math.sqrt(low * high)

    def _probe(self, rate: float) -> Load:
        rate = float(f"{rate:.4g}")
        duration_s = max(self.duration_s, min(_LONGEST_PROBE_S, min_samples(self.percentile) * _MARGIN / rate))
        return Load(scenario=self.kind, loop=OpenLoop.steady(rate, duration_s))

    def held(self, recording: Recording) -> bool:
        """Whether the objective was met: few enough requests missed it, including the failed ones."""
        total = recording.answered + recording.failed
        if not recording.answered:
            return False
        may_miss = total * (1 - self.percentile / 100) - recording.failed
        if may_miss < 0:
            return False
        return recording.percentile_ms(100 * (1 - may_miss / recording.answered)) <= self.slo_ms

    def bracket(self, probes: Sequence[tuple[Load, Recording]]) -> tuple[float, float]:
        """The highest rate that met the objective below the lowest rate that missed it (0: none), and that lowest rate.

        With noise, a rate above one that missed the objective may meet it; it does not count. Probes distorted by the generator
        are excluded.
        """
        open_loops = [
            (load.loop.rate, self.held(recording))
            for load, recording in probes
            if isinstance(load.loop, OpenLoop) and recording.invalid_reason(open_loop=True) is None
        ]
        failed = min((rate for rate, held in open_loops if not held), default=math.inf)
        return max((rate for rate, held in open_loops if held and rate < failed), default=0.0), failed

    def estimate(self) -> int:
        """The capacity probe, and about six probes of the search."""
        return 7
