"""`trident tune`: on servers that are simulated, and once for real."""

import os
import random
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bundle.store import Bundle
from loadtest.analysis.summary import slo_capacity
from loadtest.benchmark.result import Result, read_result
from loadtest.errors import TargetError
from loadtest.generator.recording import GeneratorHealth, Recording
from loadtest.lanes.lineup import Lineup
from loadtest.lanes.parity_gate import LaneParity
from loadtest.load import Load
from loadtest.scenarios import Slo
from loadtest.settings import BenchSettings
from loadtest.tune import Changes, OpenLane, Screened, candidates, tune, write_tuned
from serving.clients.endpoint import ServerName
from serving.settings import ServingSettings
from tests.loadtest.lab import drive, lane, recording, result, run, server_with
from tests.workplace import processes_of, trident
from trident.lineup import settings_in_effect

DEFAULT = {"workers": 1, "threads": 4, "max_batch_size": 8, "queue_delay_ms": 0.0}
SLO = Slo(slo_ms=50, resolution=0.05)
SETTINGS = BenchSettings(scenarios=(SLO,))
LATE = GeneratorHealth(cpu=0.2, lag_p50_ms=5, lag_p99_ms=50)


def effect_on(server: ServerName) -> Callable[[Changes], Changes]:
    return lambda changes: settings_in_effect(server, ServingSettings(), changes)


def test_every_way_to_fill_the_cores_is_tried_but_nothing_twice() -> None:
    tried = candidates(4, DEFAULT, effect_on("fastapi"))
    assert {(one["workers"], one["threads"]) for one in tried} == {(1, 4), (2, 2), (4, 1)}
    batches = {(one["max_batch_size"], one["queue_delay_ms"]) for one in tried}
    assert batches == {(1, 0), (8, 0), (8, 2), (32, 0), (32, 2)}
    assert len(tried) == 3 * 5 - 1
    assert DEFAULT not in tried
    shortest = DEFAULT | {"queue_delay_ms": 1.0}  # of TorchServe
    assert len(candidates(4, shortest, effect_on("torchserve"))) == 3 * 5 - 1


def simulated_server(serving: dict[str, Any], noise: float, load: Load) -> Recording:
    """What is seen of one with `capacity`; with `slow` it takes a second, with `dead` it answers nothing, with `late` the
    generator is never in time.
    """
    if serving.get("dead"):
        return recording([], load.loop.duration_s)
    if serving.get("slow"):
        return recording([1.0] * 700, load.loop.duration_s)
    found: Recording = server_with(serving["capacity"] * noise)(load)
    return found.model_copy(update={"generator": LATE}) if serving.get("late") else found


def simulated_benchmark(lineup: Lineup, settings: BenchSettings, folder: Path | None = None) -> Result:
    """The slo scenario on simulated servers, with noise from round to round."""
    runs = []
    for name, serving in lineup.serving.items():
        for round_ in range(settings.rounds):
            noise = random.Random(f"{name} {round_}").uniform(0.95, 1.05)
            done = drive(SLO, partial(simulated_server, serving, noise))
            runs += [run(name, load.loop, round_, recorded, "slo", probe=load.probe) for load, recorded in done]
    lanes = tuple(LaneParity(lane=one, golden_inputs=16, max_abs_difference=0, faults=()) for one in lineup.lanes)
    return result(lanes=lanes, runs=tuple(runs), settings=settings, serving=lineup.serving)


def simulated_lane(default: dict[str, Any]) -> tuple[OpenLane, list[int]]:
    """How to open one, and the numbers under which that was done."""
    started: list[int] = []

    @contextmanager
    def open_lane(changes: dict[str, Any], number: int) -> Iterator[Lineup]:
        started.append(number)
        if changes.get("capacity") == 0:
            raise TargetError("it does not start")
        yield Lineup((lane(),), None, {"fastapi": default | changes})

    return open_lane, started


@pytest.mark.parametrize("best", [400, 201])
def test_the_best_is_written_if_it_is_better(best: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("loadtest.tune.run_benchmark", simulated_benchmark)
    open_lane, started = simulated_lane({"capacity": 200})
    seen: list[Screened] = []
    tried = [{"capacity": number} for number in (100, best, 150)]
    found = tune(open_lane, tried, SETTINGS, tmp_path, seen.append)
    assert tuple(seen) == found.screened
    assert [one.changes for one in seen] == tried
    finalists = ["default", f"capacity {best}", "capacity 150"]
    assert [one.name for one in found.result.lanes] == finalists
    assert started == [0, 0, 0, 0, 1, 2]  # one after the other, then side by side
    assert read_result(tmp_path) == found.result
    write_tuned(found, tmp_path / "tuned.toml")
    written = (tmp_path / "tuned.toml").read_text()
    assert found.changes == ({"capacity": 400} if best == 400 else {})
    assert tomllib.loads(written) == ({"fastapi": found.changes} if found.changes else {})
    assert f"requests/s capacity {best}" in written
    rates = [capacity.requests_per_s.value for name in finalists if (capacity := slo_capacity(found.result, name))]
    assert rates[1] / rates[0] == pytest.approx(best / 200, rel=0.1)


def test_a_candidate_that_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("loadtest.tune.run_benchmark", simulated_benchmark)
    open_lane, _ = simulated_lane({"capacity": 200})
    tried = [{"capacity": 0}, {"capacity": 300, "late": 1}, {"capacity": 400}, {"capacity": 300, "dead": 1}]
    found = tune(open_lane, tried, SETTINGS, tmp_path, lambda _: None)
    assert [bool(one.requests_per_s) for one in found.screened] == [False, False, True, False]
    assert found.screened[0].failure == "it does not start"
    assert "INVALID: capacity 300 late 1" in str(found.screened[1].failure)
    assert found.screened[3].failure == "no rate met the objective"
    assert found.changes == {"capacity": 400}


@pytest.mark.parametrize(
    ("default", "wins"), [({"capacity": 200, "slow": 1}, True), ({"capacity": 200, "late": 1}, False)]
)
def test_a_default_without_a_rate(
    default: dict[str, Any], wins: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It never keeps the objective: the candidate is better. But a run that the generator distorted proves nothing."""
    monkeypatch.setattr("loadtest.tune.run_benchmark", simulated_benchmark)
    open_lane, _ = simulated_lane(default)
    fine, slow = {"slow": 0, "late": 0}, {"slow": 1, "late": 0}
    found = tune(open_lane, [fine, slow], SETTINGS, tmp_path, lambda _: None)
    assert found.screened[1].failure == "no rate met the objective"
    assert found.changes == (fine if wins else {})


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_server_is_tuned(digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_CORES", f"[{min(os.sched_getaffinity(0))}]")
    quick = ("--duration-s", "0.3", "--warmup-max-s", "0.5", "--slo-ms", "200")
    done = trident("tune", "--servers", "fastapi", "--model", str(digits.path), *quick, cwd=tmp_path, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert "fastapi: 4 candidates" in done.stdout
    (folder,) = tmp_path.glob("artifacts/results/*-tune-fastapi-digits")
    found = read_result(folder)
    assert found.lanes[0].name == "default"
    assert len(found.lanes) <= 3
    assert all(lane.parity == "16 of 16" for lane in found.lanes)
    assert any(slo_capacity(found, lane.name) is not None for lane in found.lanes)
    assert "batch 32 delay 2" in (folder / "tuned.toml").read_text()
    tomllib.loads((folder / "tuned.toml").read_text())
    assert processes_of(tmp_path) == []
