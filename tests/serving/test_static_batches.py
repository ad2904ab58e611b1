"""Batches in buffers of fixed addresses: on the CPU here, and with CUDA graphs on a machine with a GPU."""

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from bundle.store import Bundle
from serving.runtimes import ready_runtime
from serving.runtimes.static_batches import StaticBatches, batch_sizes, padded_size
from serving.runtimes.torchscript_module import TorchScriptModule, load_module
from serving.settings import ServingSettings

MAX_BATCH_SIZE = 21
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]


def prepared(bundle: Bundle, device: str, max_batch_size: int = MAX_BATCH_SIZE) -> StaticBatches:
    module = load_module(bundle.file(bundle.artefact("torchscript")), torch.device(device))
    spec = bundle.manifest.input
    return StaticBatches(module, torch.device(device), (3, spec.height, spec.width), max_batch_size)


def random_pixels(count: int, bundle: Bundle) -> "np.typing.NDArray[np.uint8]":
    spec = bundle.manifest.input
    return np.random.default_rng(count).integers(0, 256, (count, 3, spec.height, spec.width), np.uint8)


def test_padding_adds_at_most_an_eighth() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(8) == list(range(1, 9))
    assert batch_sizes(40) == [*range(1, 17), *range(18, 33, 2), 36, 40]
    assert batch_sizes(37)[-2:] == [36, 37]
    for count in range(1, 300):
        assert count <= padded_size(count, 300) <= count * 1.125


@pytest.mark.parametrize("device", DEVICES)
def test_gives_the_modules_probabilities_for_every_size(digits: Bundle, device: str) -> None:
    batches = prepared(digits, device)
    module = load_module(digits.file(digits.artefact("torchscript")), torch.device("cpu"))
    found, expected = [], []
    for count in [*range(1, MAX_BATCH_SIZE + 1), 2]:
        pixels = random_pixels(count, digits)
        found.append(batches.infer(pixels))
        with torch.inference_mode():
            expected.append(module(torch.from_numpy(pixels)).numpy())
    for probabilities, wanted in zip(
        found, expected, strict=True
    ):  # compared at the end: no batch changes an earlier one
        assert probabilities.dtype == np.float32
        assert np.abs(probabilities - wanted).max() < 1e-4
    assert batches.has_graphs == (device == "cuda")


def test_a_batch_larger_than_prepared_for_is_refused(digits: Bundle) -> None:
    batches = prepared(digits, "cpu", 4)
    with pytest.raises(ValueError, match="5 images in a batch; at most 4"):
        batches.infer(random_pixels(5, digits))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("max_batch_size", [1, 32])
def test_the_runtime_reproduces_the_golden_answers_on_a_gpu(
    digits: Bundle, settings: ServingSettings, max_batch_size: int
) -> None:
    changes = {"runtime": "torchscript", "device": "cuda", "max_batch_size": max_batch_size}
    runtime = ready_runtime(digits, settings.model_copy(update=changes).of("fastapi"))
    assert isinstance(runtime, TorchScriptModule)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.filterwarnings("default")
def test_a_module_that_cannot_be_captured_runs_without_graphs(caplog: pytest.LogCaptureFixture) -> None:
    def module(pixels: Tensor) -> Tensor:
        total = pixels.float().sum((1, 2, 3))
        assert total.sum().item() >= 0  # waits for the device, which a capture does not allow
        return torch.stack([total, -total], 1)

    with caplog.at_level(logging.WARNING):
        batches = StaticBatches(module, torch.device("cuda"), (3, 4, 4), 4)
    assert not batches.has_graphs
    assert "no CUDA graphs: the capture of a batch of 4 failed" in caplog.text
    assert batches.infer(np.ones((3, 3, 4, 4), np.uint8)).tolist() == [[48, -48]] * 3
