"""`trident tune`: on servers that are simulated, and once for real."""

import random
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtest.benchmark import Lineup
from loadtest.gate import Lane
from loadtest.result import Result, read_result
from loadtest.scenarios import Slo
from loadtest.settings import BenchSettings
from loadtest.summary import slo_capacity
from loadtest.tune import Screened, candidates, tune, write_tuned
from serving.bundle import Bundle
from tests.lab import drive, result, run, server_with, target
from tests.workplace import trident


def test_every_way_to_fill_the_cores_is_tried() -> None:
    tried = candidates(4)
    assert {(one["workers"], one["threads"]) for one in tried} == {(1, 4), (2, 2), (4, 1)}
    batches = {(one["max_batch_size"], one["queue_delay_ms"]) for one in tried}
    assert batches == {(1, 0), (8, 0), (8, 2), (32, 0), (32, 2)}
    assert len(tried) == 3 * 5


def simulated_benchmark(lineup: Lineup, settings: BenchSettings, folder: Path | None = None) -> Result:
    """The slo scenario on servers whose capacity is their setting `capacity`, with noise from round to round."""
    (slo,) = settings.scenarios
    runs = [
        run(name, load.loop, round_, recorded, "slo")
        for name, serving in lineup.serving.items()
        for round_ in range(settings.rounds)
        for load, recorded in drive(
            slo, server_with(serving["capacity"] * random.Random(f"{name} {round_}").uniform(0.95, 1.05))
        )
    ]
    lanes = tuple(Lane(target=one, golden_pictures=16, max_abs_difference=0, faults=()) for one in lineup.targets)
    return result(lanes=lanes, runs=tuple(runs), settings=settings, serving=lineup.serving)


@pytest.mark.parametrize("best", [400, 201])
def test_the_best_is_written_if_it_is_better(best: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("loadtest.tune.run_benchmark", simulated_benchmark)
    started: list[float] = []

    @contextmanager
    def open_lane(changes: dict[str, Any], number: int) -> Iterator[Lineup]:
        started.append(number)
        serving = {"fastapi": {"capacity": 200} | changes}
        yield Lineup((target(),), None, serving)

    seen: list[Screened] = []
    tried = [{"capacity": number} for number in (100, best, 150, 0.01)]
    settings = BenchSettings(scenarios=(Slo(slo_ms=50, resolution=0.05),))
    found = tune(open_lane, tried, Slo(slo_ms=50, resolution=0.05), settings, tmp_path, seen.append)
    assert tuple(seen) == found.screened
    assert [one.changes for one in seen] == tried
    assert (seen[3].requests_per_s, seen[3].why_none) == (0, "no rate kept the objective")
    finalists = ["default", f"capacity {best}", "capacity 150"]
    assert [one.name for one in found.result.lanes] == finalists
    assert started == [0, 0, 0, 0, 0, 1, 2]  # one after the other, then side by side
    assert read_result(tmp_path) == found.result
    write_tuned(found, tmp_path / "tuned.toml")
    written = tomllib.loads((tmp_path / "tuned.toml").read_text())
    assert written == found.changes == ({"capacity": 400} if best == 400 else {})
    shares = [capacity.requests_per_s.value for name in finalists if (capacity := slo_capacity(found.result, name))]
    assert shares[1] / shares[0] == pytest.approx(best / 200, rel=0.1)


@pytest.mark.integration
def test_a_server_is_tuned(digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_CORES", "[0]")
    quick = ("--duration-s", "0.5", "--warmup-max-s", "0.5", "--rounds", "1")
    done = trident("tune", "--servers", "fastapi", "--model", str(digits.path), *quick, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "fastapi: 4 candidates" in done.stdout
    assert done.stdout.count("max_batch_size 32, queue_delay_ms 2") >= 1
    assert "default:" in done.stdout
    (folder,) = tmp_path.glob("artifacts/results/*-tune-fastapi-digits")
    assert tomllib.loads((folder / "tuned.toml").read_text()) == {}  # one round tells no difference
    assert "default" in (folder / "report.md").read_text()
