"""The benchmark: parity gate, then rounds in which every lane gets every load, one server at a time."""

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from loadtest.environment import describe_environment
from loadtest.errors import GeneratorError
from loadtest.generator_spec import GeneratorSpec
from loadtest.recording import Recording
from loadtest.result import Lane, Result, Run
from loadtest.scenarios import SCENARIOS, Load
from loadtest.settings import BenchSettings
from loadtest.targets import Target
from serving.bundle import Bundle
from serving.clients.golden import check_golden
from serving.clients.http_client import HttpClient

OnRun = Callable[[Target, Load, int, Recording | None], None]


def run_benchmark(
    targets: Sequence[Target],
    bundle: Bundle,
    settings: BenchSettings,
    serving: dict[str, Any] | None = None,
    generator_cores: tuple[int, ...] = (),
    on_run: OnRun = lambda *_: None,
) -> Result:
    """Measure the targets whose answers are right.

    Args:
        targets: the lanes, all serving `bundle`.
        serving: the servers' settings, to be kept with the result.
        generator_cores: cores for the load generator; empty: all.
        on_run: is called before a run with None, and after it with its recording.

    Raises:
        GeneratorError: the generator could not do its work.
    """
    created = datetime.now(UTC)
    lanes = [_through_gate(target, bundle) for target in targets]
    timed = [lane.target for lane in lanes if not lane.faults]
    runs = []
    for round_, load, target in schedule(timed, settings):
        on_run(target, load, round_, None)
        started = datetime.now(UTC)
        spec = GeneratorSpec(
            target=target, load=load, bundle=bundle.path, timeout_s=settings.timeout_s, cores=generator_cores
        )
        recording = _generate(spec)
        runs.append(Run(lane=target.lane, load=load, round=round_, started=started, recording=recording))
        on_run(target, load, round_, recording)
    return Result(
        created=created,
        bundle=bundle.name,
        settings=settings,
        serving=serving,
        generator_cores=generator_cores,
        environment=describe_environment(),
        lanes=tuple(lanes),
        runs=tuple(runs),
    )


def loads(settings: BenchSettings) -> list[Load]:
    """Every load that the settings ask for."""
    return [load for scenario in settings.scenarios for load in SCENARIOS[scenario](settings)]


def schedule(targets: Sequence[Target], settings: BenchSettings) -> list[tuple[int, Load, Target]]:
    """Round, load and target of every run, in order: per round and load, the targets in a random order drawn from the
    seed.
    """
    shuffled = random.Random(settings.seed)  # noqa: S311 - an order, not a secret
    return [
        (round_, load, target)
        for round_ in range(settings.rounds)
        for load in loads(settings)
        for target in shuffled.sample(list(targets), len(targets))
    ]


def _through_gate(target: Target, bundle: Bundle) -> Lane:
    with HttpClient(target.endpoint, target.model, target.version) as client:
        golden = check_golden(client, bundle)
    return Lane(
        target=target,
        golden_pictures=golden.pictures,
        max_abs_difference=golden.max_abs_difference if golden.agrees else None,
        faults=golden.faults,
    )


def _generate(spec: GeneratorSpec) -> Recording:
    command = [sys.executable, "-m", "loadtest.generator"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(spec.model_dump_json())
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise GeneratorError(f"the load generator ended with {process.returncode}:\n{errors[-2000:]}")
    return Recording.model_validate_json(output)
