"""`make demo` as a newcomer meets it: interrupted at any moment, and run a second time."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bundle.store import Bundle
from tests.workplace import TRIDENT, leftovers, processes_of, trident

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(digits: Bundle, tmp_path: Path) -> Path:
    """A working folder in which the model is there already."""
    shutil.copytree(digits.path, tmp_path / "artifacts" / "bundles" / "digits" / "1")
    return tmp_path


@pytest.mark.parametrize("moment", ["reusing", "starting a stack", "ready", "golden answers again", "requests/s"])
@pytest.mark.parametrize("number", [signal.SIGINT])
def test_ctrl_c_leaves_nothing(folder: Path, moment: str, number: int) -> None:
    """As a terminal does it: the signal goes to the whole foreground group, and again, because people press twice."""
    before = leftovers()
    with subprocess.Popen(
        [TRIDENT, "demo"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        seen = ""
        while moment not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        os.killpg(process.pid, number)
        time.sleep(0.3)
        if process.poll() is None:
            os.killpg(process.pid, number)
        process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    deadline = time.monotonic() + 30  # after a second Ctrl-C the supervisor finishes alone
    while processes_of(folder):
        assert time.monotonic() < deadline, processes_of(folder)
        time.sleep(0.2)
    assert leftovers() <= before


def test_kill_9_leaves_nothing(folder: Path) -> None:
    before = leftovers()
    with subprocess.Popen([TRIDENT, "demo"], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "golden answers again" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
        process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while processes_of(folder):
        assert time.monotonic() < deadline, processes_of(folder)
        time.sleep(0.2)
    assert leftovers() <= before


def test_a_second_run_reuses_what_is_there(folder: Path) -> None:
    done = trident("demo", cwd=folder, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reusing bundle digits:1" in done.stdout
    table = done.stdout[done.stdout.index("latency at concurrency 1") :]
    for server in ("fastapi", "torchserve", "triton"):
        assert re.search(rf"{server} +16 of 16 +[\d.]+ +[\d.]+ +(?:[\d.]+|too few) +\d+ \(at \d+\) +0", table), table
    (path,) = re.findall(r"report: (\S+\.html)", done.stdout)
    assert Path(path).is_file()
    assert processes_of(folder) == []
