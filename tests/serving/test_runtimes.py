import dataclasses
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from bundle.errors import BundleError, DeploymentError
from bundle.preprocess import preprocess
from bundle.store import Bundle
from serving.runtimes import check_deployable, open_runtime, ready_runtime, require_golden
from serving.settings import RuntimeName, ServingSettings

RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)


@pytest.mark.parametrize("name", RUNTIMES)
def test_gives_the_golden_answers_in_batches_of_any_size(
    digits: Bundle, settings: ServingSettings, name: RuntimeName
) -> None:
    runtime = ready_runtime(digits, settings.model_copy(update={"runtime": name}).of("fastapi"))
    pixels = np.stack([preprocess(data, digits.manifest.input) for _, data in digits.golden_inputs()])
    for size in (1, 3, len(pixels)):
        got = runtime.infer(pixels[:size])
        assert got.dtype == np.float32
        assert np.abs(got - digits.golden_probabilities()[:size]).max() < 1e-5


def test_runtimes_agree_on_read_only_pixels(digits: Bundle) -> None:
    """Tensor requests are read-only views of the request's body."""
    pixels = np.stack([preprocess(data, digits.manifest.input) for _, data in digits.golden_inputs()][:7])
    pixels.flags.writeable = False
    names: tuple[RuntimeName, RuntimeName] = ("onnxruntime", "openvino")
    one, other = (open_runtime(digits, name, "fp32", "cpu", 1, max_batch_size=4).infer(pixels) for name in names)
    assert np.abs(one - other).max() < 1e-5


def test_an_answer_does_not_change_with_the_next_batch(digits: Bundle) -> None:
    spec = digits.manifest.input
    for name in RUNTIMES:
        runtime = open_runtime(digits, name, "fp32", "cpu", 1)
        first = runtime.infer(np.zeros((1, 3, spec.height, spec.width), np.uint8))
        before = first.copy()
        runtime.infer(np.full((1, 3, spec.height, spec.width), 200, np.uint8))
        assert (first == before).all(), name


def test_wrong_weights_do_not_become_ready(digits: Bundle, other_weights: Bundle) -> None:
    mixed = dataclasses.replace(digits, path=other_weights.path)
    wrong = open_runtime(mixed, "onnxruntime", "fp32", "cpu", 1)
    with pytest.raises(BundleError, match=r"golden answer to golden/00\.png"):
        require_golden(wrong, digits, 1e-4)


def test_a_precision_that_the_bundle_lacks(digits: Bundle) -> None:
    with pytest.raises(BundleError, match="has no onnx int8; it has: onnx fp32, torchscript fp32, pt2 fp32"):
        open_runtime(digits, "onnxruntime", "int8", "cpu", 1)


def test_a_precision_that_the_runtime_does_not_compute(digits: Bundle) -> None:
    with pytest.raises(DeploymentError, match="runtime = onnxruntime does not compute bf16; it computes fp32, fp16"):
        open_runtime(digits, "onnxruntime", "bf16", "cpu", 1)


def test_bf16_by_openvino_needs_a_processor_that_has_it(digits: Bundle, settings: ServingSettings) -> None:
    import openvino

    bf16 = digits.manifest.artefacts[0].model_copy(update={"precision": "bf16"})
    manifest = digits.manifest.model_copy(update={"artefacts": (*digits.manifest.artefacts, bf16)})
    bundle = dataclasses.replace(digits, manifest=manifest)
    settings = settings.model_copy(update={"runtime": "openvino", "precision": "bf16"})

    class OldProcessor:
        def get_property(self, device: str, name: str) -> object:
            return ["FP32", "INT8"] if name == "OPTIMIZATION_CAPABILITIES" else "an old processor"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino, "Core", OldProcessor)
        message = r"bf16 .* avx512_bf16 or amx_bf16; this one \(an old processor\) has neither"
        with pytest.raises(DeploymentError, match=message):
            open_runtime(bundle, "openvino", "bf16", "cpu", 1)
        with pytest.raises(DeploymentError, match=message):
            check_deployable(bundle, settings)


@pytest.mark.parametrize("name", RUNTIMES)
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
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(BundleError, match=r"model\.onnx"):
            open_runtime(broken, name, "fp32", "cpu", 1)


def test_a_runtime_that_is_not_installed_is_named(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # the image of the FastAPI service has none
    monkeypatch.delitem(sys.modules, "serving.runtimes.torchscript_module", raising=False)
    with pytest.raises(DeploymentError, match="torchscript needs the package torch"):
        open_runtime(digits, "torchscript", "fp32", "cpu", 1)
