"""The command line, run as its user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving.bundle import Bundle

COMMANDS = [
    "train",
    "export",
    "import",
    "bundles",
    "up",
    "status",
    "down",
    "predict",
    "verify",
    "bench",
    "report",
    "demo",
]


def trident(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("trident")
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_help_lists_every_command_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = trident("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout
    code = (
        "import sys, trident; print(sorted({'torch', 'numpy', 'pydantic', 'httpx', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    done = trident(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"trident {command}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "no stack is running"),
        (["verify"], "trident up"),
        (["export"], "trident train"),
        (["up"], "trident export"),
        (["report"], "trident bench"),
        (["up", "--servers", "flask"], "flask"),
        (["up", "--runtime", "tensorflow"], "runtime"),
        (["bench", "--rounds", "0"], "--rounds"),
        (["bench", "--concurrency", "2,x"], "--concurrency"),
        (["train", "--data", "mnist"], "--data"),
        (["train", "--data", "folder"], "--data-dir"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = trident(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_down_when_nothing_runs_is_fine(tmp_path: Path) -> None:
    done = trident("down", cwd=tmp_path)
    assert done.returncode == 0
    assert "no stack is running" in done.stdout


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [["train", "--model", "resnet1800"], ["import", "resnet1800"]])
def test_an_unknown_model_is_answered_with_the_known_ones(arguments: list[str], tmp_path: Path) -> None:
    done = trident(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "mobilenet_v3_small" in done.stdout + done.stderr


@pytest.mark.integration
def test_train_then_export_then_list(tmp_path: Path) -> None:
    done = trident("train", "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    (checkpoint,) = tmp_path.glob("artifacts/runs/digits/*/best.pt")
    assert json.loads((checkpoint.parent / "settings.json").read_text())["epochs"] == 1
    done = trident("export", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "digits:1" in done.stdout
    listed = trident("bundles", cwd=tmp_path)
    assert "digits:1" in listed.stdout


def test_bundles(digits: Bundle, tmp_path: Path) -> None:
    done = trident("bundles", "--bundles", str(digits.path.parents[1]), cwd=tmp_path)
    assert "digits:1" in done.stdout
    assert "32x32 stretch" in done.stdout
