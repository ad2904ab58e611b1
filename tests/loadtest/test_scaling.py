"""Requests per second over cores: the cost of wrk, what each process uses, the tables."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bundle.store import Bundle
from loadtest.errors import LoadtestError
from loadtest.generator.wrk import ToolFigures, wrk_is_installed
from loadtest.overhead import scaling
from loadtest.overhead.contestants import Contestant
from loadtest.overhead.scaling import ScalingSettings, ScalingTurns, measure_scaling, scaling_tables, without_load
from loadtest.overhead.table import Table
from loadtest.overhead.turns import Entrant
from loadtest.overhead.use import Use, connections_of_processes, cores_of_processes
from tests.loadtest.lab import lane

needs_wrk = pytest.mark.skipif(not wrk_is_installed(), reason="wrk is not installed (apt install wrk)")


def turns(name: str, workers: int, rates: list[float], shared: bool = False) -> ScalingTurns:
    server: Any = None
    found = ScalingTurns(Entrant(name, 16, "batch 8", server), workers, shared)
    found.figures += [ToolFigures(0.001, 0.002, rate) for rate in rates]
    found.uses += [Use(0.5, {("python", 7): 0.9, ("python", 8): 0.8, ("python", 9): 0.0}, {7: 9, 8: 7}) for _ in rates]
    return found


def test_the_cost_of_the_load_is_taken_out() -> None:
    assert without_load(1500, 2, 0.5) == 2000
    assert without_load(1500, 2, 0.0) == 1500
    assert turns("trident", 2, [1400, 1500, 1600], shared=True).without_wrk == 2000
    assert turns("trident", 2, [1400, 1500, 1600]).without_wrk == 1500


def test_the_table_shows_scaling_and_fairness() -> None:
    measured = [turns("mosec", 1, [800.0]), turns("trident", 1, [1000.0]), turns("trident", 2, [1500.0], shared=True)]
    (table,) = [
        block for block in scaling_tables(ScalingSettings(connections=(16,)), measured, 2) if isinstance(block, Table)
    ]
    assert table.title == "16 connections"
    assert [(row[0], row[2], row[7], row[8]) for row in table.rows] == [
        ("trident", "1", "1000", "1.00"),
        ("trident", "2", "2000", "2.00"),
        ("mosec", "1", "800", "1.00"),
    ]
    assert table.rows[0][-2:] == ("python 0.90, python 0.80", "9 7")


def test_use_is_listed_by_process() -> None:
    uses = [
        Use(0.5, {("mosec", 1): 0.4, ("python", 2): 0.8, ("python", 3): 0.0}, {2: 16}),
        Use(0.5, {("mosec", 1): 0.2, ("python", 2): 0.0, ("python", 3): 0.8}, {2: 5, 3: 11}),
    ]
    assert cores_of_processes(uses) == "mosec 0.30, python 0.80"
    assert connections_of_processes(uses) == "16 0; 5 11"
    assert cores_of_processes([]) == connections_of_processes([]) == "-"
    assert connections_of_processes([Use()]) == "-"


@needs_wrk
def test_a_server_is_measured_on_one_core(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = [sys.executable, "-m", "tests.loadtest.small_server", str(digits.path)]
    here = lane("trident", dialect="image", path="/predict", server="small")
    one = Contestant("trident", lambda port: [*serve, str(port)], here)
    monkeypatch.setattr(scaling, "contestants", lambda *_: {"trident": [one]})
    monkeypatch.setattr(scaling, "_SETTLE_S", 0.0)
    settings = ScalingSettings(workers=(1,), connections=(2,), rounds=1, seconds=1)
    (table,) = [block for block in measure_scaling(settings, digits, Console(quiet=True)) if isinstance(block, Table)]
    (row,) = table.rows
    assert float(row[5]) > 50
    assert row[-2].startswith("python")
    assert row[-1] == "2"


@needs_wrk
def test_more_workers_than_cores_are_refused(digits: Bundle) -> None:
    many = len(os.sched_getaffinity(0)) + 1
    with pytest.raises(LoadtestError, match=f"may use {many - 1} cores only"):
        measure_scaling(ScalingSettings(peers=Path("python"), workers=(many,)), digits, Console(quiet=True))
