"""slo: the highest rate of Poisson arrivals at which the latency objective still holds, by search."""

import math
from collections.abc import Sequence
from typing import Final, Literal

from pydantic import Field

from loadtest.generator.recording import Recording
from loadtest.load import Load, OpenLoop
from loadtest.scenarios.scenario import Loads, Past, Settings, capacity
from loadtest.statistics import min_samples

_MARGIN: Final = 1.1  # more arrivals than needed, because their number is random
_LONGEST_PROBE_S: Final = 120.0
_LOWEST_SHARE: Final = 0.02  # of the rate at which the search begins


class Slo(Settings):
    """p`percentile` of all requests, counted from their scheduled arrival, within `slo_ms`. A failed request misses it.

    Bisection of the rate to within `resolution`; every probe is at least `duration_s` long, and long enough for its
    percentile to be told (662 requests for p99), but two minutes at most. The search goes on below a rate that the
    generator could not offer, and ends at a wrong answer.
    """

    kind: Literal["slo"] = "slo"
    slo_ms: float = Field(default=50.0, gt=0)
    percentile: float = Field(default=99.0, gt=0, lt=100)
    resolution: float = Field(default=0.08, gt=0, lt=1)
    duration_s: float = Field(default=3.0, gt=0, le=3600)

    def loads(self, past: Sequence[Past]) -> Loads:
        """Probes. Later rounds begin around what the ones before found."""
        found, _ = self.bracket([(one.load, one.recording) for one in past])
        if found:
            low, high, rate = 0.0, math.inf, found
        else:
            most = yield from capacity(self.kind, past)
            low, high, rate = 0.0, math.inf, (most or 1.0) * 0.8
        lowest, step = rate * _LOWEST_SHARE, 1.25
        while rate > lowest and (math.isinf(high) or high > low * (1 + self.resolution)):
            recording = yield self._probe(rate)
            if recording.wrong:
                return
            if self.held(recording) and not recording.fault(open_loop=True):
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
        """Whether the objective held: the share of requests, failed ones included, that missed it is small enough."""
        total = recording.answered + recording.failed
        if not recording.answered:
            return False
        may_miss = total * (1 - self.percentile / 100) - recording.failed
        if may_miss < 0:
            return False
        return recording.percentile_ms(100 * (1 - may_miss / recording.answered)) <= self.slo_ms

    def bracket(self, probes: Sequence[tuple[Load, Recording]]) -> tuple[float, float]:
        """The highest rate at which it held and above which, up to the next failure, it did not fail (0: none); and the
        lowest at which it failed.

        Noise may let a rate pass above one that failed; then the lower one counts. What the generator spoiled is no
        evidence.
        """
        open_loops = [
            (load.loop.rate, self.held(recording))
            for load, recording in probes
            if isinstance(load.loop, OpenLoop) and not recording.fault(open_loop=True)
        ]
        failed = min((rate for rate, held in open_loops if not held), default=math.inf)
        return max((rate for rate, held in open_loops if held and rate < failed), default=0.0), failed

    def estimate(self) -> int:
        """A capacity probe and some six of the search."""
        return 7
