import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.errors import BundleError, DeploymentError
from bundle.preprocess import preprocess
from bundle.store import Bundle
from serving.runtimes import open_runtime, ready_runtime, require_golden
from serving.settings import RuntimeName, ServingSettings


@pytest.mark.parametrize("name", ["onnxruntime", "torchscript"])
def test_gives_the_golden_answers_in_batches_of_any_size(
    digits: Bundle, settings: ServingSettings, name: RuntimeName
) -> None:
    runtime = ready_runtime(digits, settings.model_copy(update={"runtime": name}).of("fastapi"))
    pixels = np.stack([preprocess(data, digits.manifest.input) for _, data in digits.golden_inputs()])
    for size in (1, 3, len(pixels)):
        got = runtime.infer(pixels[:size])
        assert got.dtype == np.float32
        assert np.abs(got - digits.golden_probabilities()[:size]).max() < 1e-5


def test_wrong_weights_do_not_become_ready(digits: Bundle, other_weights: Bundle) -> None:
    mixed = dataclasses.replace(digits, path=other_weights.path)
    wrong = open_runtime(mixed, "onnxruntime", "fp32", "cpu", 1)
    with pytest.raises(BundleError, match=r"golden answer to golden/00\.png"):
        require_golden(wrong, digits, 1e-4)


def test_a_precision_that_the_bundle_lacks(digits: Bundle) -> None:
    with pytest.raises(BundleError, match="has no onnx int8; it has: onnx fp32, torchscript fp32, pt2 fp32"):
        open_runtime(digits, "onnxruntime", "int8", "cpu", 1)


@pytest.mark.parametrize("name", ["onnxruntime", "torchscript"])
def test_cuda_where_there_is_none(digits: Bundle, name: RuntimeName) -> None:
    import onnxruntime
    import torch

    if torch.cuda.is_available() or "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(DeploymentError, match="cuda"):
        open_runtime(digits, name, "fp32", "cuda", 1)


def test_a_truncated_model_file(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(digits.file(digits.artefact("onnx")).read_bytes()[:1000])
    broken: Any = dataclasses.replace(digits, path=tmp_path)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_runtime(broken, "onnxruntime", "fp32", "cpu", 1)


def test_a_runtime_that_is_not_installed_is_named(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # the image of the FastAPI service has none
    monkeypatch.delitem(sys.modules, "serving.runtimes.torchscript_module", raising=False)
    with pytest.raises(DeploymentError, match="torchscript needs the package torch"):
        open_runtime(digits, "torchscript", "fp32", "cpu", 1)
