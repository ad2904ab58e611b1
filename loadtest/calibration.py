"""What the generator itself costs and can drive: its latency and rate on a target that answers without doing anything."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from loadtest.generator.client import Generator
from loadtest.generator.fake_server import Behaviour, fake_server
from loadtest.generator.spec import GeneratorSpec
from loadtest.load import ClosedLoop, Load, WarmUp

_CROWD = 16


class Calibration(BaseModel):
    """On the null target: latency of a lone request, and the most requests per second (closed loop of 16), with the CPU
    seconds that one request costs the generator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50_ms: float
    p99_ms: float
    requests_per_s: float
    cpu_us_per_request: float


def calibrate(generator: Generator, seconds: float, server_cores: Sequence[int], cores: tuple[int, ...]) -> Calibration:
    """Measure it, on the cores that the benchmark will use."""
    with fake_server(Behaviour(), server_cores) as target:
        recordings = [
            generator.run(
                GeneratorSpec(
                    target=target,
                    load=Load(scenario="calibration", loop=ClosedLoop(concurrency=concurrency, duration_s=seconds)),
                    bundle=None,
                    timeout_s=10,
                    warm_up=WarmUp(min_s=0.3, max_s=0.3),
                    cores=cores,
                )
            )
            for concurrency in (1, _CROWD)
        ]
    alone, crowd = recordings
    return Calibration(
        p50_ms=alone.percentile_ms(50),
        p99_ms=alone.percentile_ms(99),
        requests_per_s=crowd.requests_per_s,
        cpu_us_per_request=crowd.generator.cpu / max(1.0, crowd.requests_per_s) * 1e6,
    )
