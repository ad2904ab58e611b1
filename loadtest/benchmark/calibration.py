"""Calibration: the generator's own latency and highest rate, on a server that answers without doing anything."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from loadtest.generator.client import Generator
from loadtest.generator.fake_server import Behaviour, fake_server
from loadtest.generator.spec import GeneratorSpec
from loadtest.load import ClosedLoop, Load, WarmUp

_CONCURRENCY = 16


class Calibration(BaseModel):
    """On the null target: latency at concurrency 1; throughput at concurrency 16, and the generator's CPU per request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50_ms: float
    p99_ms: float
    requests_per_s: float
    cpu_us_per_request: float


def calibrate(generator: Generator, seconds: float, server_cores: Sequence[int], cores: tuple[int, ...]) -> Calibration:
    """Measure the generator on the cores of the benchmark."""
    with fake_server(Behaviour(), server_cores) as lane:
        single, concurrent = (
            generator.run(
                GeneratorSpec(
                    lane=lane,
                    load=Load(scenario="calibration", loop=ClosedLoop(concurrency=concurrency, duration_s=seconds)),
                    bundle=None,
                    timeout_s=10,
                    warm_up=WarmUp(min_s=0.3, max_s=0.3),
                    cores=cores,
                )
            )
            for concurrency in (1, _CONCURRENCY)
        )
    return Calibration(
        p50_ms=single.percentile_ms(50),
        p99_ms=single.percentile_ms(99),
        requests_per_s=concurrent.requests_per_s,
        cpu_us_per_request=concurrent.generator.cpu / max(1.0, concurrent.requests_per_s) * 1e6,
    )
