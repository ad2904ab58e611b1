"""The benchmark: parity gate, then rounds in which every lane gets every load, one server at a time."""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundle.store import Bundle
from loadtest.calibration import calibrate
from loadtest.ceiling import Ceiling, CeilingSpec, measure_ceiling
from loadtest.environment import describe_environment
from loadtest.gate import through_gate
from loadtest.generator.client import Generator
from loadtest.generator.recording import Recording
from loadtest.generator.spec import GeneratorSpec
from loadtest.load import ClosedLoop, Load, WarmUp
from loadtest.resources import InContainer, Meter, Processes, watching
from loadtest.result import Result, Run
from loadtest.scenarios import Loads, Past, Scenario
from loadtest.server_view import read_counters, stages_s
from loadtest.settings import BenchSettings
from loadtest.targets import Target

_BURN_IN_AT_ONCE = 8
# Before a run with None, after it with the run.
OnRun = Callable[[Target, Load, int, Run | None], None]


@dataclass(frozen=True)
class Lineup:
    """Who is measured, and where. `serving` and `ceilings` are by lane, as far as they are known; empty cores: any."""

    targets: tuple[Target, ...]
    bundle: Bundle | None
    serving: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    ceilings: Mapping[str, CeilingSpec] = field(default_factory=dict)
    server_cores: tuple[int, ...] = ()
    generator_cores: tuple[int, ...] = ()
    api_key: str | None = None


def run_benchmark(
    measured: Lineup, settings: BenchSettings, folder: Path | None = None, on_run: OnRun = lambda *_: None
) -> Result:
    """Measure the targets whose answers are right.

    Args:
        folder: where the rows of all requests are kept; None: nowhere.

    Raises:
        GeneratorError: the generator could not do its work.
    """
    created = datetime.now(UTC)
    lanes = [through_gate(target, measured.bundle, measured.api_key) for target in measured.targets]
    timed = [lane.target for lane in lanes if not lane.faults]
    calibration, ceilings = None, []
    with _on_cores(measured.generator_cores), Generator() as generator:
        if timed and settings.calibration_s:
            calibration = calibrate(generator, settings.calibration_s, measured.server_cores, measured.generator_cores)
        bench = _Bench(measured, settings, generator, folder, on_run)
        bench.burn_in(timed)
        for round_ in range(settings.rounds if timed else 0):
            ceilings += _ceilings(measured, timed, settings, round_)
            bench.round(round_, timed)
    return Result(
        created=created,
        bundle=measured.bundle.name if measured.bundle is not None else "no bundle",
        settings=settings,
        serving=dict(measured.serving),
        ceiling_specs=dict(measured.ceilings),
        server_cores=measured.server_cores,
        generator_cores=measured.generator_cores,
        environment=describe_environment(),
        calibration=calibration,
        lanes=tuple(lanes),
        ceilings=tuple(ceilings),
        runs=tuple(bench.runs),
    )


def steps(
    scenario: Scenario, targets: Sequence[Target], past: Mapping[str, Sequence[Past]], shuffled: random.Random
) -> Iterator[tuple[Target, Load, Callable[[Recording], None]]]:
    """Target and load of every run of one scenario in one round, in order: load by load, the targets in a random order.

    What comes with each is called with the recording, so that scenarios that search can go on.
    """
    plans: dict[str, Loads] = {target.lane: scenario.loads(past.get(target.lane, ())) for target in targets}
    replies: dict[str, Recording | None] = {target.lane: None for target in targets}
    going = list(targets)
    while going:
        for target in shuffled.sample(going, len(going)):
            lane, reply = target.lane, replies[target.lane]
            try:
                load = next(plans[lane]) if reply is None else plans[lane].send(reply)
            except StopIteration:
                going.remove(target)
                continue
            yield target, load, lambda recording, lane=lane: replies.__setitem__(lane, recording)  # type: ignore[misc]


class _Bench:
    """The runs so far."""

    def __init__(
        self, measured: Lineup, settings: BenchSettings, generator: Generator, folder: Path | None, on_run: OnRun
    ) -> None:
        self.runs: list[Run] = []
        self._measured = measured
        self._settings = settings
        self._generator = generator
        self._folder = folder
        self._on_run = on_run
        self._process_of = _server_processes(measured.targets)
        self._meters = _meters(measured.targets, self._process_of)
        self._shuffled = random.Random(settings.seed)  # noqa: S311 - an order, not a secret

    def burn_in(self, timed: Sequence[Target]) -> None:
        """Load on every lane, of which nothing is kept: just-in-time compilers (TorchServe's Java) need thousands of
        requests, which no warm-up between runs gives them.
        """
        if not self._settings.burn_in_s:
            return
        load = Load(
            scenario="burn-in", loop=ClosedLoop(concurrency=_BURN_IN_AT_ONCE, duration_s=self._settings.burn_in_s)
        )
        for target in timed:
            self._on_run(target, load, 0, None)
            self._generator.run(self._spec(target, load).model_copy(update={"warm_up": WarmUp(min_s=0, max_s=0)}))

    def round(self, round_: int, timed: Sequence[Target]) -> None:
        """Every scenario on every lane, once."""
        for scenario in self._settings.scenarios:
            past: dict[str, list[Past]] = {}
            for run in self.runs:
                if run.load.scenario == scenario.kind and not run.repeated:
                    past.setdefault(run.lane, []).append(Past(run.load, run.recording))
            for target, load, tell in steps(scenario, timed, past, self._shuffled):
                tell(self._until_valid(target, load, round_).recording)

    def _until_valid(self, target: Target, load: Load, round_: int) -> Run:
        """A run; once more if the generator (not the server) spoiled it."""
        for left in range(self._settings.repeats, -1, -1):
            self._on_run(target, load, round_, None)
            run = self._run(target, load, round_)
            spoiled = bool(run.fault) and not run.recording.wrong and not load.probe and left > 0
            run = run.model_copy(update={"repeated": spoiled})
            self.runs.append(run)
            self._on_run(target, load, round_, run)
            if not spoiled:
                return run
        raise AssertionError("unreachable")

    def _run(self, target: Target, load: Load, round_: int) -> Run:
        spec, file = self._spec(target, load), None
        if self._settings.keep_requests and self._folder is not None:
            file = f"requests/{len(self.runs):04d}.npz"
            spec = spec.model_copy(update={"requests_file": self._folder.resolve() / file})
        started = datetime.now(UTC)
        before = read_counters(target)
        with watching(self._process_of[target.lane], self._meters, (self._generator.pid, os.getpid())) as watch:
            recording = self._generator.run(spec)
        return Run(
            lane=target.lane,
            load=load,
            round=round_,
            started=started,
            recording=recording,
            resources=watch.use,
            server_stages_s=stages_s(before, read_counters(target)),
            requests_file=file,
        )

    def _spec(self, target: Target, load: Load) -> GeneratorSpec:
        settings, measured = self._settings, self._measured
        return GeneratorSpec(
            target=target,
            load=load,
            bundle=measured.bundle.path if measured.bundle is not None and target.dialect != "null" else None,
            timeout_s=settings.timeout_s,
            api_key=measured.api_key,
            warm_up=settings.warm_up,
            cores=measured.generator_cores,
            seed=settings.seed * 1_000_003 + len(self.runs),
            max_in_flight=settings.max_in_flight,
            processes=settings.processes,
        )


def _server_processes(targets: Sequence[Target]) -> dict[str, str]:
    """By lane, the name of its server's process. One of ours may be measured as a target of the user's too."""
    names: dict[tuple[int, ...], str] = {}
    return {
        target.lane: names.setdefault(target.pids, target.server_process) if target.pids else target.server_process
        for target in targets
    }


def _meters(targets: Sequence[Target], process_of: Mapping[str, str]) -> dict[str, Meter]:
    """By server process: what reads its use, where that is known."""
    meters: dict[str, Meter] = {}
    for target in targets:
        if target.container_url:
            meters[process_of[target.lane]] = InContainer(target.container_url)
        elif target.pids:
            meters[process_of[target.lane]] = Processes(target.pids)
    return meters


def _ceilings(measured: Lineup, timed: Sequence[Target], settings: BenchSettings, round_: int) -> list[Ceiling]:
    """What the runtimes of the lanes do without a server, in this round."""
    if measured.bundle is None or not settings.ceiling_s:
        return []
    specs = dict.fromkeys(measured.ceilings[target.lane] for target in timed if target.lane in measured.ceilings)
    return [measure_ceiling(spec, measured.bundle, settings.ceiling_s, round_) for spec in specs]


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """This process, and what it starts, on the generator's cores: it samples while others are measured."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
