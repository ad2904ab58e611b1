"""Lower precisions, .pt2 and the mobile format: comparison with fp32, and rejection if they lose accuracy."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from bundle.errors import BundleError
from bundle.golden import compare_probabilities
from bundle.manifest import Format, Precision
from bundle.preprocess import Pixels, preprocess
from bundle.store import Bundle, list_bundles
from serving.runtimes import ready_runtime
from serving.runtimes.precisions import measure_variants, open_variants, variants
from serving.settings import ServingSettings
from tests.training.training_runs import train_digits
from training.errors import ExportError
from training.export import ExportOptions, export_checkpoint
from training.formats import Infer, bf16_hindrance, read_model
from training.precisions import quantise


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with clear predictions: after one epoch, many classes are nearly equally probable."""
    return train_digits(tmp_path_factory.mktemp("run"), epochs=3, image_size=16, batch_size=32).checkpoint


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every format and precision."""
    options = ExportOptions(("fp16", "bf16", "int8", "int8-dynamic"), edge=True)
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("bundles"), log=lambda _: None, options=options)


EVERY: list[tuple[Format, Precision]] = [
    ("onnx", "fp32"),
    ("torchscript", "fp32"),
    ("pt2", "fp32"),
    ("onnx", "fp16"),
    ("torchscript", "bf16"),
    *([] if bf16_hindrance() else [("onnx", "bf16")]),  # type: ignore[list-item]
    ("onnx", "int8"),
    ("onnx", "int8-dynamic"),
    ("ort", "fp32"),
    ("ort", "int8"),
]


def test_the_bundle_has_every_format_and_precision(bundle: Bundle) -> None:
    assert [(artefact.format, artefact.precision) for artefact in bundle.manifest.artefacts] == EVERY


@pytest.mark.parametrize(("format_", "precision"), EVERY)
def test_each_file_gives_the_golden_answers_within_its_tolerance(
    bundle: Bundle, format_: Format, precision: Precision
) -> None:
    artefact = bundle.artefact(format_, precision)
    pixels = np.stack([preprocess(data, bundle.manifest.input) for _, data in bundle.golden_inputs()])
    infer = read_model(format_, bundle.file(artefact), precision)
    for size in (1, 5, len(pixels)):
        probabilities = infer(pixels[:size])
        assert probabilities.dtype == np.float32
        golden = bundle.golden_probabilities()[:size]
        assert compare_probabilities(probabilities, golden, artefact.tolerance) is None
        assert np.allclose(probabilities.sum(1), 1, atol=2e-3)
    assert artefact.tolerance < 0.3
    assert artefact.accuracy_inputs == 359
    assert artefact.accuracy_drop is not None
    assert artefact.accuracy_drop <= 0.02
    assert artefact.latency_ms is not None
    assert artefact.speedup is not None


def test_int8_is_int8_and_smaller(bundle: Bundle) -> None:
    int8 = bundle.artefact("onnx", "int8")
    assert int8.bytes < bundle.artefact("onnx").bytes / 3
    graph = onnx.load(bundle.file(int8)).graph
    assert any(node.op_type == "QuantizeLinear" for node in graph.node)
    weights = {initializer.data_type for initializer in graph.initializer if np.prod(initializer.dims) > 1000}
    assert weights == {onnx.TensorProto.INT8}
    assert bundle.artefact("onnx", "fp16").bytes < bundle.artefact("onnx").bytes * 0.6


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        ("onnxruntime", "int8"),
        ("onnxruntime", "fp16"),
        ("torchscript", "bf16"),
        ("openvino", "int8"),
        pytest.param("openvino", "bf16", marks=pytest.mark.skipif(bool(bf16_hindrance()), reason="no bf16 here")),
    ],
)
def test_a_runtime_serves_it(bundle: Bundle, runtime: str, precision: str) -> None:
    settings = ServingSettings(runtime=runtime, precision=precision, threads=1)
    assert ready_runtime(bundle, settings.of("fastapi")).infer(np.zeros((2, 3, 16, 16), np.uint8)).shape == (2, 10)


def test_a_large_accuracy_drop_is_an_error(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration on black images clips every activation."""

    def on_black(source: Path, target: Path, calibration: Pixels) -> None:
        quantise(source, target, np.zeros_like(calibration))

    monkeypatch.setattr("training.export.quantise", on_black)
    with pytest.raises(ExportError, match=r"model\.int8\.onnx loses .* of accuracy, and 2\.00% is allowed"):
        export_checkpoint(checkpoint, tmp_path, log=lambda _: None, options=ExportOptions(("int8",)))
    assert list_bundles(tmp_path) == []


def test_without_bf16_the_bundle_has_no_bf16_by_openvino(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    lines: list[str] = []
    bundle = export_checkpoint(checkpoint, tmp_path, log=lines.append, options=ExportOptions(("bf16",)))
    assert "no bf16 by OpenVINO in this bundle: openvino is not installed" in lines
    assert bundle.artefact("torchscript", "bf16").file == "model.bf16.pt"
    with pytest.raises(BundleError, match="has no onnx bf16; it has"):
        bundle.artefact("onnx", "bf16")


@pytest.mark.skipif(bool(bf16_hindrance()), reason="this processor has no bf16")
def test_a_large_accuracy_drop_in_bf16_is_an_error(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's answers are replaced by those of a model that always gives the first class."""

    def first_class(path: Path, precision: Precision, threads: int = 0) -> Infer:
        return lambda pixels: np.eye(1, 10, dtype=np.float32).repeat(len(pixels), 0)

    monkeypatch.setattr("training.formats.read_openvino", first_class)
    with pytest.raises(ExportError, match=r"model\.onnx in bf16 loses .* of accuracy, and 2\.00% is allowed"):
        export_checkpoint(checkpoint, tmp_path, log=lambda _: None, options=ExportOptions(("bf16",)))
    assert list_bundles(tmp_path) == []


@pytest.mark.skipif(bool(bf16_hindrance()), reason="this processor has no bf16")
def test_bf16_by_openvino_is_the_fp32_file(bundle: Bundle) -> None:
    bf16, fp32 = bundle.artefact("onnx", "bf16"), bundle.artefact("onnx")
    assert (bf16.file, bf16.sha256) == (fp32.file, fp32.sha256)
    assert bf16.max_abs_difference > 10 * fp32.max_abs_difference
    assert bf16.label == "model.onnx in bf16 by OpenVINO"


def test_every_variant_is_measured(bundle: Bundle) -> None:
    skipped: list[str] = []
    models = open_variants(bundle, 1, skipped.append)
    pixels = np.stack([preprocess(data, bundle.manifest.input) for _, data in bundle.golden_inputs()])
    measured = measure_variants(models, bundle, pixels, rounds=1)
    names = [(one.variant.runtime, one.variant.precision) for one in measured]
    assert len(names) + len(skipped) == len(list(variants(bundle)))
    assert names[0] == ("onnxruntime", "fp32")
    assert {("torchscript", "fp32"), ("openvino", "fp32"), ("openvino", "int8")} <= set(names)
    for one in measured:
        assert min(one.model_ms, one.decoded_ms, one.batched_ms) > 0
        assert one.agreement >= 0.8
