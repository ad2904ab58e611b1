"""The model in lower precisions: fp16 and bf16, and int8 by onnxruntime's post-training quantisation.

`int8`          static: weights per channel, activations per tensor, as QuantizeLinear/DequantizeLinear pairs around each
                layer (QDQ). The ranges of the activations come from calibration images of the training data.
`int8-dynamic`  weights of the dense layers; the ranges of the activations are computed per request.

Normalisation and softmax stay in fp32. The signature does not change: uint8 pixels in, float32 probabilities out.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

import copy
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from bundle.preprocess import Pixels
from training.models import Servable

CALIBRATION_BATCH: Final = 16


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` as `dtype`."""
        return x.to(self.dtype)


def to_half_precision(servable: Servable, dtype: torch.dtype) -> Servable:
    """Return a copy whose network computes in `dtype`, float16 or bfloat16."""
    halved = copy.deepcopy(servable)
    halved.classifier.network = nn.Sequential(_Cast(dtype), halved.classifier.network.to(dtype))
    return halved.eval()


def quantise(source: Path, target: Path, calibration: Pixels) -> None:
    """Write the static int8 version of an fp32 ONNX file; `calibration` is uint8 `[N, 3, H, W]`."""
    with tempfile.TemporaryDirectory() as folder, _quiet_logging():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = _load_without_shapes(prepared)
        quantize_static(
            model,
            str(target),
            _CalibrationImages(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # Logits and probabilities stay in fp32: 256 levels are too few for high probabilities.
            nodes_to_exclude=[node.name for node in model.graph.node if node.op_type == "Softmax"],
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
    _check_and_clean(source, target)


def quantise_dynamic(source: Path, target: Path) -> None:
    """Write the dynamic int8 version of an fp32 ONNX file."""
    with _quiet_logging():
        quantize_dynamic(
            _load_without_shapes(source),
            str(target),
            op_types_to_quantize=["Gemm", "MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    _check_and_clean(source, target)


class _CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pixels: Pixels) -> None:
        self._batches = iter([pixels[i : i + CALIBRATION_BATCH] for i in range(0, len(pixels), CALIBRATION_BATCH)])

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next batch by the input's name, or None at the end, as onnxruntime expects."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def _load_without_shapes(path: Path) -> onnx.ModelProto:
    """Load a model without intermediate shapes: the quantisers keep outdated ones, and shape inference then fails."""
    model = onnx.load(path)
    model.graph.ClearField("value_info")
    return model


def _check_and_clean(source: Path, target: Path) -> None:
    """Check the signature, and remove metadata with this machine's paths."""
    model = onnx.load(target)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == [value.name for value in onnx.load(source).graph.input]
    onnx.save(model, target)


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence the quantisers, which log advice on the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
