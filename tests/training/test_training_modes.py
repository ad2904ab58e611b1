"""bf16, channels_last, torch.compile and the gradient scaler take effect, and the model still learns."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.training_runs import SilentProgress, train_digits
from training.checkpoint import load_checkpoint
from training.datasets import load_dataset
from training.progress import RunResult
from training.run import run_training
from training.settings import TrainSettings
from training.trainer import Trainer

SMALL: dict[str, Any] = {"image_size": 8, "epochs": 2, "batch_size": 128, "learning_rate": 0.005}


def train_observed(folder: Path, **options: Any) -> tuple[Trainer, list[Tensor], RunResult]:
    """Do a short run; return its trainer, the first convolution's inputs and outputs in training, and its result."""
    torch.set_num_threads(1)
    settings = TrainSettings(**SMALL | options)
    trainers: list[Trainer] = []
    seen: list[Tensor] = []

    def observe(trainer: Trainer) -> None:
        trainers.append(trainer)
        first = next(module for module in trainer.model.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(
            lambda _, inputs, output: seen.extend((inputs[0], output)) if trainer.model.training else None
        )

    result = run_training(settings, load_dataset(settings), folder, SilentProgress(), on_start=observe)
    return trainers[0], seen, result


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(tmp_path: Path) -> None:
    trainer, seen, result = train_observed(tmp_path, precision="bf16")
    assert {tensor.dtype for tensor in seen[1::2]} == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert not trainer.training_step.scaler.is_enabled()
    assert result.test_accuracy > 0.6


def test_fp32_computes_in_fp32(tmp_path: Path) -> None:
    _, seen, _ = train_observed(tmp_path, precision="fp32", epochs=1)
    assert {tensor.dtype for tensor in seen} == {torch.float32}


@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_last_sets_the_memory_format_of_images_and_weights(tmp_path: Path, channels_last: bool) -> None:
    trainer, seen, result = train_observed(tmp_path, channels_last=channels_last, epochs=1)
    kernels = [module.weight for module in trainer.model.modules() if isinstance(module, nn.Conv2d)]
    for tensor in (*seen, *kernels):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert all(weight.is_contiguous() for weight in load_checkpoint(result.checkpoint).weights.values())


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")
def test_a_compiled_run_gives_the_weights_of_an_eager_run_and_can_be_resumed(tmp_path: Path) -> None:
    options = SMALL | {"dropout": 0, "ema_decay": 0.9}
    eager = train_digits(tmp_path / "eager", **options)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    whole = train_digits(tmp_path / "whole", **options, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for name, weight in load_checkpoint(eager.checkpoint).weights.items():
        assert torch.allclose(weight, load_checkpoint(whole.checkpoint).weights[name], atol=1e-3), name

    class Killed(BaseException):
        """Simulates a process that is killed after its first epoch."""

    class Killing(SilentProgress):
        def batch_done(self, epoch: int, loss: float | None) -> None:
            if epoch == 1:
                raise Killed

    settings = TrainSettings(**options, compile=True)
    with pytest.raises(Killed):
        run_training(settings, load_dataset(settings), tmp_path / "cut", Killing())
    resumed = train_digits(tmp_path / "cut", resume=True, **options, compile=True)
    for name, weight in load_checkpoint(whole.checkpoint).weights.items():
        assert torch.equal(weight, load_checkpoint(resumed.checkpoint).weights[name]), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_fp16_on_a_gpu_scales_gradients_and_skips_overflows(tmp_path: Path) -> None:
    trainer, seen, result = train_observed(tmp_path, device="cuda", precision="fp16")
    assert {tensor.dtype for tensor in seen[1::2]} == {torch.float16}
    assert trainer.training_step.scaler.is_enabled()
    assert result.test_accuracy > 0.6
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    scale = trainer.training_step.scaler.get_scale()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    trainer.training_step.scaler.scale(torch.zeros((), device="cuda"))  # the scaler records the device on its first use
    trainer.training_step.scaler.step(trainer.training_step.optimizer)
    trainer.training_step.scaler.update()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.training_step.scaler.get_scale() == scale / 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_run_is_resumed_with_its_scaler(tmp_path: Path) -> None:
    options = SMALL | {"device": "cuda", "precision": "fp16", "ema_decay": 0.9}
    settings = TrainSettings(**options)
    train_digits(tmp_path / "run", **options)
    trainer = Trainer(settings, load_dataset(settings), tmp_path / "run", SilentProgress())
    assert trainer.resume()
    assert trainer.training_step.scaler.state_dict()["scale"] == trainer.training_step.scaler.get_scale() > 0
    assert trainer.step == 2 * trainer.batches.steps
