"""Load on the shared stack: `trident bench`, its report, and Locust."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from serving.clients.endpoint import SERVERS
from serving.stack.state import StackState
from tests.workplace import Run, trident

pytestmark = pytest.mark.integration


def test_bench_measures_all_three(stack: StackState, workplace: Path, run: Run) -> None:
    done = trident(
        *("bench", "--duration-s", "0.5", "--rounds", "1", "--concurrency", "2"),
        *("--initial-warmup-s", "0.2", "--warmup-s", "0.2", "--warmup-max-s", "0.5"),
        cwd=workplace,
        check=True,
    )
    (report,) = workplace.glob("artifacts/results/*/report.html")
    assert str(report) in done.stdout
    for server in SERVERS:
        assert f"{server}" in done.stdout
    assert "16 of 16" in done.stdout
    assert run("report", cwd=workplace)[0] == 0


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_locust_drives_a_server_with_master_and_workers(
    loop: str, stack: StackState, workplace: Path, tmp_path: Path
) -> None:
    locustfile = Path(__file__).parents[2] / "loadtest" / "locustfile.py"
    arguments = [
        "--model",
        "digits:1",
        "--host",
        stack.endpoints()[0].url,
        "--loop",
        loop,
        "--rate-per-user",
        "30",
        "--csv",
        str(tmp_path / "seen"),
    ]
    subprocess.run(
        [Path(sys.executable).with_name("locust"), "-f", locustfile, "--headless", "--processes", "2",
         "--users", "2", "--spawn-rate", "10", "--run-time", "3s", *arguments],
        cwd=workplace, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    with (tmp_path / "seen_stats.csv").open() as file:
        total = next(row for row in csv.DictReader(file) if row["Name"] == "Aggregated")
    assert int(total["Failure Count"]) == 0
    assert int(total["Request Count"]) > 60
