"""The command line: a few commands as processes of their own, the many short ones in this process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.store import Bundle
from tests.workplace import Run, trident

COMMANDS = [
    "train",
    "sweep",
    "export",
    "import",
    "bundles",
    "up",
    "status",
    "down",
    "deploy",
    "rollback",
    "drill",
    "predict",
    "verify",
    "bench",
    "report",
    "compare",
    "tune",
    "precisions",
    "demo",
]


def test_help_lists_every_command_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = trident("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout
    code = "import sys, trident.app; print(sorted({'torch', 'numpy', 'pydantic', 'httpx', 'matplotlib'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, run: Run) -> None:
    code, output = run(command, "--help")
    assert code == 0
    assert f"trident {command}" in output


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["status"], "no stack is running"),
        (["verify"], "trident up"),
        (["rollback"], "trident up"),
        (["predict", __file__, "--protocol", "udp"], "http, grpc"),
        (["export"], "trident train"),
        (["up"], "trident export"),
        (["report"], "trident bench"),
        (["up", "--servers", "flask"], "flask"),
        (["up", "--runtime", "tensorflow"], "runtime"),
        (["bench", "--rounds", "0"], "--rounds"),
        (["bench", "--concurrency", "2,x"], "--concurrency"),
        (["bench", "--rates", "100"], "--rates belongs to the scenario server"),
        (["bench", "--send", "video"], "--send"),
        (["bench", "--file", "none.toml"], "none.toml"),
        (["compare", ".", "."], "trident bench"),
        (["tune"], "trident export"),
        (["precisions"], "trident export"),
        (["train", "--data", "mnist"], "--data"),
        (["train", "--data", "folder"], "--data-dir"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(arguments: list[str], output: str, run: Run) -> None:
    code, shown = run(*arguments)
    assert code == 1
    assert output in shown
    assert len(shown.strip().splitlines()) == 1


def test_an_unknown_flag_is_a_usage_error(run: Run) -> None:
    code, output = run("up", "--colour", "green")
    assert code == 2
    assert "--colour" in output


def test_down_when_nothing_runs_is_fine(run: Run) -> None:
    assert run("down") == (0, "no stack is running\n")


@pytest.mark.parametrize("arguments", [["train", "--model", "resnet1800"], ["import", "resnet1800"]])
def test_an_unknown_model_is_answered_with_the_known_ones(arguments: list[str], run: Run) -> None:
    code, shown = run(*arguments)
    assert code == 1
    assert "mobilenet_v3_small" in shown


def test_train_then_export_then_list(tmp_path: Path, run: Run) -> None:
    code, shown = run("train", "--epochs", "1")
    assert code == 0, shown
    assert "test accuracy" in shown
    (checkpoint,) = tmp_path.glob("artifacts/runs/digits/*/best.pt")
    assert json.loads((checkpoint.parent / "settings.json").read_text())["epochs"] == 1
    code, shown = run("export")
    assert code == 0, shown
    assert "digits:1" in shown
    assert "digits:1" in run("bundles")[1]


def test_bundles(digits: Bundle, run: Run) -> None:
    code, output = run("bundles", "--bundles", str(digits.path.parents[1]))
    assert code == 0
    assert "digits:1" in output
    assert "32x32 stretch" in output


def test_precisions(digits: Bundle, run: Run) -> None:
    before = os.sched_getaffinity(0)
    code, output = run("precisions", "--model", str(digits.path), "--rounds", "1")
    assert code == 0, output
    rows = [line.split() for line in output.splitlines()]
    compared = [row[:2] for row in rows if row and row[0] in ("onnxruntime", "torchscript", "openvino")]
    assert compared == [["onnxruntime", "fp32"], ["torchscript", "fp32"], ["openvino", "fp32"]]
    assert all(row[-3:] == ["0.00%", "100.0%", row[-1]] for row in rows if row and row[0] == "openvino")
    assert os.sched_getaffinity(0) == before
