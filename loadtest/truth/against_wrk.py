"""The generator against wrk on the null target, on the same core, in turn."""

from loadtest.generator.client import Generator
from loadtest.generator.fake_server import Behaviour, fake_server
from loadtest.generator.spec import GeneratorSpec
from loadtest.generator.wrk import ToolFigures, run_wrk
from loadtest.lanes.lane import Lane
from loadtest.load import ClosedLoop, Load, WarmUp


def take_turns(
    concurrency: int, rounds: int, seconds: float, server_cores: tuple[int, ...], cores: tuple[int, ...]
) -> list[tuple[ToolFigures, ToolFigures]]:
    """The figures of wrk and of the generator, round by round.

    Raises:
        LoadtestError: wrk is not installed, or fails.
    """
    with fake_server(Behaviour(), server_cores) as lane, Generator() as generator:
        return [
            (run_wrk(lane, None, concurrency, seconds, cores), _generator(generator, lane, concurrency, seconds, cores))
            for _ in range(rounds)
        ]


def _generator(
    generator: Generator, lane: Lane, concurrency: int, seconds: float, cores: tuple[int, ...]
) -> ToolFigures:
    spec = GeneratorSpec(
        lane=lane,
        load=Load(scenario="truth", loop=ClosedLoop(concurrency=concurrency, duration_s=seconds)),
        bundle=None,
        timeout_s=10,
        warm_up=WarmUp(min_s=0.3, max_s=0.3),
        cores=cores,
    )
    recording = generator.run(spec)
    p50_s, p99_s = recording.percentile_ms(50) / 1000, recording.percentile_ms(99) / 1000
    return ToolFigures(p50_s, p99_s, recording.requests_per_s, recording.failed)
