"""`trident demo` as a newcomer meets it: interrupted at any moment, and run a second time."""

import importlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from bundle.store import Bundle
from tests.waiting import wait_until
from tests.workplace import TRIDENT, Run, leftovers_of, processes_of, trident

slow = pytest.mark.slow


@pytest.fixture
def folder(digits: Bundle, tmp_path: Path) -> Path:
    """A working folder in which the model is there already."""
    shutil.copytree(digits.path, tmp_path / "artifacts" / "bundles" / "digits" / "1")
    return tmp_path


@pytest.mark.parametrize("moment", ["find_bundle", "starting", "verify_servers", "run_bench"])
def test_ctrl_c_during_a_step_ends_the_demo_and_stops_the_servers(
    moment: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps are fakes; those before the interrupted one succeed."""
    steps = {
        "find_bundle": "bundle.store",
        "verify_servers": "trident.console.requests",
        "run_bench": "trident.console.bench",
    }
    for module in (
        *steps.values(),
        "trident.console.training",
        "trident.console.export",
    ):  # so that none of them imports a fake
        importlib.import_module(module)
    seen: list[str] = []

    def step(name: str, *_: object) -> SimpleNamespace:
        seen.append(name)
        if name == moment:
            raise KeyboardInterrupt
        return SimpleNamespace(name="digits:1", path=folder, sound=True, lanes=[])

    @contextmanager
    def open_lineup(*_: object) -> Iterator[SimpleNamespace]:
        lineup = step("starting")
        try:
            yield lineup
        finally:
            seen.append("stopped")

    monkeypatch.setattr("trident.commands.demo.open_lineup", open_lineup)
    for name, module in steps.items():
        monkeypatch.setattr(f"{module}.{name}", partial(step, name))
    code, _ = run("demo", cwd=folder)
    assert code == 130
    assert seen[-1] == ("stopped" if moment in ("verify_servers", "run_bench") else moment)


@pytest.mark.integration
@pytest.mark.parametrize(
    "moment",
    [
        "starting a stack",
        *(pytest.param(moment, marks=slow) for moment in ("reusing", "ready", "golden answers again", "requests/s")),
    ],
)
def test_ctrl_c_leaves_nothing(folder: Path, moment: str) -> None:
    """As a terminal does it: the signal goes to the whole foreground group, and again, because people press twice."""
    with subprocess.Popen(
        [TRIDENT, "demo"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        read_until(moment, process)
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(0.3)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    ended(folder)  # after a second Ctrl-C the supervisor finishes alone
    assert leftovers_of(folder) == []


@pytest.mark.integration
@slow
def test_kill_9_of_the_demo_leaves_nothing(folder: Path) -> None:
    with subprocess.Popen([TRIDENT, "demo"], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        read_until("golden answers again", process)
        process.kill()
        process.communicate(timeout=60)
    ended(folder)
    assert leftovers_of(folder) == []


def read_until(moment: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    seen = ""
    while moment not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line


def ended(folder: Path) -> None:
    wait_until(lambda: not processes_of(folder), pause_s=0.2, shown=lambda: processes_of(folder))


@pytest.mark.integration
@pytest.mark.serial
@pytest.mark.parametrize("flags", [("--quick",), pytest.param((), marks=slow)])
def test_a_second_run_reuses_the_bundle(flags: tuple[str, ...], folder: Path) -> None:
    done = trident("demo", *flags, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reusing bundle digits:1" in done.stdout
    table = done.stdout[done.stdout.index("latency at concurrency 1") :]
    for server in ("fastapi", "torchserve", "triton"):
        assert re.search(
            rf"{server}(?: \(python backend\))? +16 of 16 +[\d.]+ +[\d.]+ +(?:[\d.]+|too few) +\d+ \(at \d+\) +0", table
        ), table
    (path,) = re.findall(r"report: (\S+\.html)", done.stdout)
    assert Path(path).is_file()
    assert processes_of(folder) == []
