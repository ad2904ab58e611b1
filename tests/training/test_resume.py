"""A run that was killed and resumed ends as one that was not, bit by bit; several processes learn what one learns."""

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
from tests.workplace import trident
from training.checkpoint import load_checkpoint, load_state, state_files
from training.errors import CheckpointError
from trident.app import app

# Everything that has a state: momentum, schedule, scaler, moving average, dropout, augmentation, batch norm.
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
    """Stands for a process that ends between two steps."""


def last_weights(folder: Path) -> dict[str, Tensor]:
    """All that a run's last state holds: weights, statistics, momenta, averages."""
    parts = load_state(state_files(folder / "checkpoints")[-1]).parts
    tensors = dict(parts["model"]) | {f"ema.{name}": tensor for name, tensor in parts.get("ema", {}).items()}
    for number, state in parts["optimizer"]["state"].items():
        tensors |= {f"{number}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run's logs, without the times."""
    lines = [
        json.loads(line)
        for name in ("metrics", "steps")
        for line in (folder / f"{name}.jsonl").read_text().splitlines()
    ]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    train_digits(folder, **OPTIONS)
    return folder


@pytest.mark.parametrize(
    "options", [{}, {"precision": "fp16", "optimizer": "adamw", "model": "mlp"}, {"precision": "bf16"}]
)
def test_resumed_in_the_middle_of_an_epoch(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    if options:
        whole = tmp_path / "whole"
        train_digits(whole, **OPTIONS | options)
    from training.trainer import Trainer

    step = Trainer._step

    def step_until_killed(self: Trainer, *arguments: Any) -> Any:
        if self.step == 14:
            raise Killed
        return step(self, *arguments)

    folder = tmp_path / "run"
    monkeypatch.setattr(Trainer, "_step", step_until_killed)
    with pytest.raises(Killed):
        train_digits(folder, **OPTIONS | options)
    monkeypatch.undo()
    assert [path.name for path in state_files(folder / "checkpoints")] == ["step-00000010.pt", "step-00000012.pt"]
    train_digits(folder, resume=True, **OPTIONS | options)
    assert same(last_weights(folder), last_weights(whole))
    assert same(load_checkpoint(folder / "best.pt").weights, load_checkpoint(whole / "best.pt").weights)
    assert numbers(folder) == numbers(whole)


@pytest.mark.integration
def test_killed_with_signal_9_at_any_moment(tmp_path: Path) -> None:
    """Twice, the second time a little later."""
    trident("train", *FLAGS, "--run-dir", "whole", cwd=tmp_path, check=True)
    command = [sys.executable, "-m", "trident", "train", *FLAGS, "--run-dir", str(tmp_path / "run"), "--resume"]
    kills = 0
    for states_to_see in (1, 4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path) as process:
            seen: set[str] = set()
            while process.poll() is None and len(seen) < states_to_see:
                seen |= {path.name for path in state_files(tmp_path / "run" / "checkpoints")}
                time.sleep(0.002)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 or "has ended" in done.stderr, done.stdout + done.stderr
    assert kills == 2
    assert same(last_weights(tmp_path / "run"), last_weights(tmp_path / "whole"))


def test_only_the_last_checkpoints_are_kept(whole: Path) -> None:
    names = [path.name for path in (whole / "checkpoints").iterdir()]
    assert sorted(names) == ["step-00000027.pt", "step-00000030.pt"]


def test_a_run_is_not_overwritten(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="has a run already"):
        train_digits(whole, **OPTIONS)


def test_a_run_does_not_go_on_with_other_data(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="other data"):
        train_digits(whole, resume=True, **OPTIONS | {"image_size": 16})


def test_a_run_keeps_its_settings(whole: Path) -> None:
    from training.run import resumed_settings
    from training.settings import TrainSettings

    (whole / "result.json").rename(whole / "result.kept")
    try:
        settings = TrainSettings(**OPTIONS)
        assert resumed_settings(whole, {}, TrainSettings()) == settings
        assert resumed_settings(whole, {"epochs": 3}, settings) == settings
        with pytest.raises(CheckpointError, match="was started with --epochs 3"):
            resumed_settings(whole, {"epochs": 4}, settings.model_copy(update={"epochs": 4}))
    finally:
        (whole / "result.kept").rename(whole / "result.json")
    with pytest.raises(CheckpointError, match="has ended"):
        resumed_settings(whole, {}, settings)


def test_a_run_without_a_checkpoint_keeps_its_settings_too(tmp_path: Path) -> None:
    from training.run import resumed_settings
    from training.settings import TrainSettings

    settings = TrainSettings(data="cifar10", epochs=3)
    assert resumed_settings(tmp_path, {}, TrainSettings()) == TrainSettings()
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    assert resumed_settings(tmp_path, {}, TrainSettings()) == settings


def test_resume_alone_asks_for_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run on other data than the default's could not be resumed."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("trident.console.training.train_run", lambda given, *_, **__: asked.append(given))
    for flags in (["--resume"], ["--data", "cifar10"]):
        assert CliRunner().invoke(app, ["train", *flags]).exit_code == 0
    assert asked == [{}, {"data": "cifar10"}]


@pytest.mark.integration
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trident", "train", "--image-size", "8", "--epochs", "500", "--patience", "500"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "epoch   1/500" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "trident train --resume --run-dir artifacts/runs/digits/" in said
