"""A run that was killed and resumed gives bit for bit the result of an uninterrupted run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.training.training_runs import train_digits
from training.checkpoint import load_checkpoint, load_state, state_files
from training.errors import CheckpointError
from training.run import resumed_settings
from training.settings import TrainSettings
from training.trainer import Trainer
from trident.app import app

# Use everything with a state: momentum, schedule, scaler, moving average, dropout, augmentation, batch norm.
OPTIONS: dict[str, Any] = {
    "model": "resnet",
    "image_size": 8,
    "epochs": 3,
    "batch_size": 128,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "schedule": "onecycle",
    "label_smoothing": 0.1,
    "dropout": 0.2,
    "clip_norm": 1.0,
    "accumulate": 2,
    "ema_decay": 0.9,
    "checkpoint_steps": 3,
}
FLAGS = [word for key, value in OPTIONS.items() for word in (f"--{key.replace('_', '-')}", str(value))]


class Killed(BaseException):
    """Simulates a process that is killed between two steps."""


def last_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a run's last state: weights, statistics, momenta, averages."""
    parts = load_state(state_files(folder / "checkpoints")[-1]).parts
    tensors = dict(parts["model"]) | {f"ema.{name}": tensor for name, tensor in parts.get("ema", {}).items()}
    for number, state in parts["optimizer"]["state"].items():
        tensors |= {f"{number}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged_values(folder: Path) -> list[dict[str, Any]]:
    """Return all lines of a run's logs, without the times."""
    lines = [
        json.loads(line)
        for name in ("metrics", "steps")
        for line in (folder / f"{name}.jsonl").read_text().splitlines()
    ]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train_digits(folder, **OPTIONS)
    return folder


@pytest.mark.parametrize(
    "options", [{}, {"precision": "fp16", "optimizer": "adamw", "model": "mlp"}, {"precision": "bf16"}]
)
def test_resume_in_the_middle_of_an_epoch(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    if options:
        uninterrupted = tmp_path / "uninterrupted"
        train_digits(uninterrupted, **OPTIONS | options)
    finish_step = Trainer._finish_step

    def killed_after_14_steps(self: Trainer, *arguments: Any) -> None:
        if self.step == 14:
            raise Killed
        finish_step(self, *arguments)

    folder = tmp_path / "run"
    monkeypatch.setattr(Trainer, "_finish_step", killed_after_14_steps)
    with pytest.raises(Killed):
        train_digits(folder, **OPTIONS | options)
    monkeypatch.undo()
    assert [path.name for path in state_files(folder / "checkpoints")] == ["step-00000010.pt", "step-00000012.pt"]
    train_digits(folder, resume=True, **OPTIONS | options)
    assert equal(last_tensors(folder), last_tensors(uninterrupted))
    assert equal(load_checkpoint(folder / "best.pt").weights, load_checkpoint(uninterrupted / "best.pt").weights)
    assert logged_values(folder) == logged_values(uninterrupted)


@pytest.mark.integration
@pytest.mark.parametrize("moments", [(2,), pytest.param((1, 4), marks=pytest.mark.slow)])
def test_killed_with_signal_9(
    moments: tuple[int, ...], uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the run when it has written so many checkpoints, and resume it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in the uninterrupted run
    command = [sys.executable, "-m", "trident", "train", *FLAGS, "--run-dir", str(tmp_path / "run"), "--resume"]
    kills = 0
    for states_to_see in moments:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path) as process:
            seen: set[str] = set()
            while process.poll() is None and len(seen) < states_to_see:
                seen |= {path.name for path in state_files(tmp_path / "run" / "checkpoints")}
                time.sleep(0.002)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 or "has finished" in done.stderr, done.stdout + done.stderr
    assert kills == len(moments)
    assert equal(last_tensors(tmp_path / "run"), last_tensors(uninterrupted))


def test_only_the_last_checkpoints_are_kept(uninterrupted: Path) -> None:
    names = [path.name for path in (uninterrupted / "checkpoints").iterdir()]
    assert sorted(names) == ["step-00000027.pt", "step-00000030.pt"]


def test_a_run_is_not_overwritten(uninterrupted: Path) -> None:
    with pytest.raises(CheckpointError, match="already has a run"):
        train_digits(uninterrupted, **OPTIONS)


def test_a_run_is_not_resumed_with_another_data_set(uninterrupted: Path) -> None:
    with pytest.raises(CheckpointError, match="data set digits has changed"):
        train_digits(uninterrupted, resume=True, **OPTIONS | {"image_size": 16})


def test_a_run_keeps_its_settings(uninterrupted: Path) -> None:
    (uninterrupted / "result.json").rename(uninterrupted / "result.hidden")
    try:
        settings = TrainSettings(**OPTIONS)
        assert resumed_settings(uninterrupted, {}, TrainSettings()) == settings
        assert resumed_settings(uninterrupted, {"epochs": 3}, settings) == settings
        with pytest.raises(CheckpointError, match="was started with --epochs 3"):
            resumed_settings(uninterrupted, {"epochs": 4}, settings.model_copy(update={"epochs": 4}))
    finally:
        (uninterrupted / "result.hidden").rename(uninterrupted / "result.json")
    with pytest.raises(CheckpointError, match="has finished"):
        resumed_settings(uninterrupted, {}, settings)


def test_a_run_without_a_checkpoint_keeps_its_settings(tmp_path: Path) -> None:
    settings = TrainSettings(data="cifar10", epochs=3)
    assert resumed_settings(tmp_path, {}, TrainSettings()) == TrainSettings()
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    assert resumed_settings(tmp_path, {}, TrainSettings()) == settings


def test_resume_alone_gives_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a run on a data set other than the default could not be resumed."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr("trident.console.training.train_run", lambda given, *_, **__: calls.append(given))
    for flags in (["--resume"], ["--data", "cifar10"]):
        assert CliRunner().invoke(app, ["train", *flags]).exit_code == 0
    assert calls == [{}, {"data": "cifar10"}]


@pytest.mark.integration
def test_ctrl_c_prints_the_command_to_resume(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trident", "train", "--image-size", "8", "--epochs", "500", "--patience", "500"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "epoch   1/500" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "trident train --resume --run-dir artifacts/runs/digits/" in output
