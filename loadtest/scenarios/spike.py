"""spike: a steady rate, a step up, a step down. Shows how long recovery takes."""

from collections.abc import Sequence
from typing import Final, Literal

from pydantic import Field

from loadtest.generator.recording import Recording
from loadtest.load import Load, OpenLoop, Phase
from loadtest.scenarios.scenario import Loads, PastLoad, ScenarioSettings, capacity

_RECOVERED_FACTOR: Final = 2.0
_BINS: Final = 3


class Spike(ScenarioSettings):
    """`base_share` of the lane's capacity, then `spike_share` for `spike_s`, then the base again."""

    kind: Literal["spike"] = "spike"
    base_share: float = Field(default=0.4, gt=0, lt=1)
    spike_share: float = Field(default=1.5, gt=0, le=100)
    base_s: float = Field(default=3.0, gt=0, le=3600)
    spike_s: float = Field(default=2.0, gt=0, le=3600)
    recovery_s: float = Field(default=6.0, gt=0, le=3600)

    def loads(self, past: Sequence[PastLoad]) -> Loads:
        """The capacity probe, then one open loop of three phases."""
        capacity_per_s = yield from capacity(self.kind, past)
        if capacity_per_s:
            base, top = (float(f"{capacity_per_s * share:.3g}") for share in (self.base_share, self.spike_share))
            stretches = ((base, self.base_s), (top, self.spike_s), (base, self.recovery_s))
            phases = tuple(Phase(rate=max(0.1, rate), duration_s=seconds) for rate, seconds in stretches)
            yield Load(scenario=self.kind, loop=OpenLoop(phases=phases))

    def estimate(self) -> int:
        """The capacity probe and the spike."""
        return 2


def recovery_s(loop: OpenLoop, recording: Recording) -> float | None:
    """Seconds from the end of the spike until recovery; None if there was no recovery within the run.

    Recovery: three successive bins of the timeline have no failure, and a median latency of at most twice the median before
    the spike.
    """
    line = recording.timeline
    spike_from = loop.phases[0].duration_s
    spike_until = spike_from + loop.phases[1].duration_s
    before = sorted(
        p50 for index, p50 in enumerate(line.p50_ms) if p50 is not None and (index + 1) * line.bin_s <= spike_from
    )
    if not before:
        return None
    limit = before[len(before) // 2] * _RECOVERED_FACTOR
    calm = [
        p50 is not None and p50 <= limit and not failed for p50, failed in zip(line.p50_ms, line.failed, strict=True)
    ]
    first = int(spike_until / line.bin_s)
    for index in range(first, len(calm) - _BINS + 1):
        if all(calm[index : index + _BINS]):
            return max(0.0, index * line.bin_s - spike_until)
    return None
