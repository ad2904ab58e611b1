"""Transfer learning from published weights, on a folder of images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.images import encoded, gradient
from training.datasets import load_dataset
from training.progress import EpochResult
from training.run import run_training
from training.settings import TrainSettings, resolve_settings
from training.trainer import Trainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `My Images` with two classes of ten images."""
    root = tmp_path / "My Images"
    for label, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (root / label).mkdir(parents=True)
        for i in range(10):
            image = gradient(40 + i, 30 + i)
            image = Image.blend(image, Image.new("RGB", image.size, color), 0.7)
            (root / label / f"{i}.png").write_bytes(encoded(image))
    return root


class WeightRecorder:
    """A progress display that records all weights before the run and after every epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.trainer: Trainer

    def begin(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.record()

    def record(self) -> None:
        self.seen.append({name: value.clone() for name, value in self.trainer.model.state_dict().items()})

    def batch_done(self, epoch: int, loss: float | None) -> None:
        pass

    def epoch_done(self, result: EpochResult, *, best: bool) -> None:
        self.record()


def test_a_folder_uses_its_recipe(folder: Path) -> None:
    settings = resolve_settings({"data": str(folder)})
    assert (settings.data, settings.data_dir, settings.name) == ("folder", folder, "my_images")
    assert (settings.model, settings.pretrained, settings.freeze_epochs) == ("efficientnet_lite0", True, 4)
    other = resolve_settings({"data": str(folder), "model": "resnet18"})
    assert (other.pretrained, other.freeze_epochs) == (False, 0)


def test_the_head_is_trained_alone_before_the_backbone(folder: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    given: dict[str, Any] = {"data": str(folder), "image_size": 32, "epochs": 2, "freeze_epochs": 1, "batch_size": 8}
    settings: TrainSettings = resolve_settings(given)
    recorder = WeightRecorder()
    result = run_training(settings, load_dataset(settings), tmp_path / "run", recorder, on_start=recorder.begin)
    start, frozen, free = recorder.seen
    head = {name for name in start if "_fc" in name}
    assert len(head) == 2
    backbone = start.keys() - head
    assert all(torch.equal(start[name], frozen[name]) for name in backbone)
    assert all(not torch.equal(start[name], frozen[name]) for name in head)
    assert any(not torch.equal(frozen[name], free[name]) for name in backbone)
    assert result.checkpoint.is_file()
