"""The benchmark: parity gate, then rounds in which every lane gets every load, one server under load at a time."""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from loadtest.benchmark.calibration import calibrate
from loadtest.benchmark.result import Result, Run
from loadtest.generator.client import Generator
from loadtest.generator.recording import Recording
from loadtest.generator.spec import GeneratorSpec
from loadtest.lanes.ceiling import Ceiling, measure_ceiling
from loadtest.lanes.lane import Lane
from loadtest.lanes.lineup import Lineup
from loadtest.lanes.parity_gate import check_parity
from loadtest.lanes.server_view import read_counters, stages_s
from loadtest.load import ClosedLoop, Load, WarmUp
from loadtest.machine.environment import describe_environment
from loadtest.machine.resources import InContainer, Meter, Processes, watching
from loadtest.scenarios import Loads, PastLoad, Scenario
from loadtest.settings import BenchSettings

_INITIAL_CONCURRENCY: Final = 8
# Called before a run with None, after it with the run.
OnRun = Callable[[Lane, Load, int, Run | None], None]


def run_benchmark(
    lineup: Lineup, settings: BenchSettings, folder: Path | None = None, on_run: OnRun = lambda *_: None
) -> Result:
    """Measure the lanes that pass the parity gate.

    Args:
        folder: where the rows of all requests are stored; None: not stored.

    Raises:
        GeneratorError: the generator failed.
    """
    created = datetime.now(UTC)
    lanes = [check_parity(lane, lineup.bundle, lineup.api_key) for lane in lineup.lanes]
    timed = [parity.lane for parity in lanes if not parity.faults]
    calibration, ceilings = None, []
    with _on_cores(lineup.generator_cores), Generator() as generator:
        if timed and settings.calibration_s:
            calibration = calibrate(generator, settings.calibration_s, lineup.server_cores, lineup.generator_cores)
        bench = _Bench(lineup, settings, generator, folder, on_run)
        bench.initial_warmup(timed)
        for round_ in range(settings.rounds if timed else 0):
            ceilings += _ceilings(lineup, timed, settings, round_)
            bench.round(round_, timed)
    return Result(
        created=created,
        bundle=lineup.bundle.name if lineup.bundle is not None else "no bundle",
        settings=settings,
        serving=dict(lineup.serving),
        ceiling_specs=dict(lineup.ceilings),
        server_cores=lineup.server_cores,
        generator_cores=lineup.generator_cores,
        environment=describe_environment(),
        calibration=calibration,
        lanes=tuple(lanes),
        ceilings=tuple(ceilings),
        runs=tuple(bench.runs),
    )


def steps(
    scenario: Scenario, lanes: Sequence[Lane], past: Mapping[str, Sequence[PastLoad]], shuffled: random.Random
) -> Iterator[tuple[Lane, Load, Callable[[Recording], None]]]:
    """Yield lane and load of every run of one scenario in one round: load by load, the lanes in random order.

    The caller passes the recording to the yielded function, so that scenarios that search can continue.
    """
    plans: dict[str, Loads] = {lane.name: scenario.loads(past.get(lane.name, ())) for lane in lanes}
    recordings: dict[str, Recording | None] = {lane.name: None for lane in lanes}
    remaining = list(lanes)
    while remaining:
        for lane in shuffled.sample(remaining, len(remaining)):
            name, recording = lane.name, recordings[lane.name]
            try:
                load = next(plans[name]) if recording is None else plans[name].send(recording)
            except StopIteration:
                remaining.remove(lane)
                continue
            yield lane, load, lambda recording, name=name: recordings.__setitem__(name, recording)  # type: ignore[misc]


class _Bench:
    """Makes the runs, and collects them."""

    def __init__(
        self, lineup: Lineup, settings: BenchSettings, generator: Generator, folder: Path | None, on_run: OnRun
    ) -> None:
        self.runs: list[Run] = []
        self._lineup = lineup
        self._settings = settings
        self._generator = generator
        self._folder = folder
        self._on_run = on_run
        self._process_of = _server_processes(lineup.lanes)
        self._meters = _meters(lineup.lanes, self._process_of)
        self._shuffled = random.Random(settings.seed)  # noqa: S311 - an order, not a secret

    def initial_warmup(self, timed: Sequence[Lane]) -> None:
        """Load every lane without recording it: just-in-time compilers (TorchServe's Java) need thousands of requests, more
        than the warm-up of a run.
        """
        if not self._settings.initial_warmup_s:
            return
        loop = ClosedLoop(concurrency=_INITIAL_CONCURRENCY, duration_s=self._settings.initial_warmup_s)
        load = Load(scenario="initial warm-up", loop=loop)
        for lane in timed:
            self._on_run(lane, load, 0, None)
            self._generator.run(self._spec(lane, load).model_copy(update={"warm_up": WarmUp(min_s=0, max_s=0)}))

    def round(self, round_: int, timed: Sequence[Lane]) -> None:
        """Run every scenario on every lane once."""
        for scenario in self._settings.scenarios:
            past: dict[str, list[PastLoad]] = {}
            for run in self.runs:
                if run.load.scenario == scenario.kind and not run.repeated:
                    past.setdefault(run.lane, []).append(PastLoad(run.load, run.recording))
            for lane, load, tell in steps(scenario, timed, past, self._shuffled):
                tell(self._until_valid(lane, load, round_).recording)

    def _until_valid(self, lane: Lane, load: Load, round_: int) -> Run:
        """Make a run; repeat it if it was distorted by the generator or by other servers, not if answers were wrong."""
        for left in range(self._settings.repeats, -1, -1):
            self._on_run(lane, load, round_, None)
            run = self._run(lane, load, round_)
            distorted = run.invalid_reason is not None and not run.recording.wrong
            run = run.model_copy(update={"repeated": distorted and not load.probe and left > 0})
            self.runs.append(run)
            self._on_run(lane, load, round_, run)
            if not run.repeated:
                return run
        raise AssertionError("unreachable")

    def _run(self, lane: Lane, load: Load, round_: int) -> Run:
        spec, file = self._spec(lane, load), None
        if self._settings.keep_requests and self._folder is not None:
            file = f"requests/{len(self.runs):04d}.npz"
            spec = spec.model_copy(update={"requests_file": self._folder.resolve() / file})
        started = datetime.now(UTC)
        before = read_counters(lane)
        with watching(self._process_of[lane.name], self._meters, (self._generator.pid, os.getpid())) as watch:
            recording = self._generator.run(spec)
        return Run(
            lane=lane.name,
            load=load,
            round=round_,
            started=started,
            recording=recording,
            resources=watch.use,
            server_stages_s=stages_s(before, read_counters(lane)),
            requests_file=file,
        )

    def _spec(self, lane: Lane, load: Load) -> GeneratorSpec:
        settings, lineup = self._settings, self._lineup
        return GeneratorSpec(
            lane=lane,
            load=load,
            bundle=lineup.bundle.path if lineup.bundle is not None and lane.dialect != "null" else None,
            timeout_s=settings.timeout_s,
            api_key=lineup.api_key,
            warm_up=settings.warm_up,
            cores=lineup.generator_cores,
            seed=settings.seed * 1_000_003 + len(self.runs),
            max_in_flight=settings.max_in_flight,
            processes=settings.processes,
        )


def _server_processes(lanes: Sequence[Lane]) -> dict[str, str]:
    """By lane, the name of its server's process. Lanes with the same pids share it, whatever their servers' names."""
    names: dict[tuple[int, ...], str] = {}
    return {
        lane.name: names.setdefault(lane.pids, lane.server_process) if lane.pids else lane.server_process
        for lane in lanes
    }


def _meters(lanes: Sequence[Lane], process_of: Mapping[str, str]) -> dict[str, Meter]:
    """By server process, what reads its use; without the servers whose use cannot be read."""
    meters: dict[str, Meter] = {}
    for lane in lanes:
        if lane.container_url:
            meters[process_of[lane.name]] = InContainer(lane.container_url)
        elif lane.pids:
            meters[process_of[lane.name]] = Processes(lane.pids)
    return meters


def _ceilings(lineup: Lineup, timed: Sequence[Lane], settings: BenchSettings, round_: int) -> list[Ceiling]:
    """This round's ceilings of the lanes' runtimes."""
    if lineup.bundle is None or not settings.ceiling_s:
        return []
    specs = dict.fromkeys(lineup.ceilings[lane.name] for lane in timed if lane.name in lineup.ceilings)
    return [measure_ceiling(spec, lineup.bundle, settings.ceiling_s, round_) for spec in specs]


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Pin this process and its children to the generator's cores: it takes samples during the runs."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
