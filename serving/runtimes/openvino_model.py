"""OpenVINO on the CPU: the bundle's fp32 ONNX file in fp32 or bf16, or its int8 file.

The batch size of a compiled model is fixed. With a dynamic one, OpenVINO prepares the model again whenever a batch has
another size than the one before. So there is one model for each power of two, and a batch is computed in such parts.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov

from bundle.errors import BundleError, DeploymentError
from bundle.manifest import Precision
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels
from serving.settings import Device

_DEVICE: Final = "CPU"


class OpenVinoModel:
    """A bundle's ONNX file, compiled for batches of 1, 2, 4 ... at most `max_batch_size` images."""

    def __init__(self, path: Path, precision: Precision, device: Device, threads: int, max_batch_size: int = 1) -> None:
        if device != "cpu":
            raise DeploymentError(f"device = {device}: runtime = openvino runs on the CPU only")
        if precision == "bf16":
            require_bf16()
        core = ov.Core()
        sizes = [2**power for power in range(max_batch_size.bit_length())]
        try:
            model = core.read_model(path)
            _, *image = model.input().partial_shape
            self._compiled = {}
            for size in reversed(sizes):
                model.reshape(ov.PartialShape([size, *image]))
                self._compiled[size] = _FixedBatch(core.compile_model(model, _DEVICE, _properties(precision, threads)))
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot load {path}: {error}") from error

    def infer(self, pixels: Pixels) -> Probabilities:
        """Probabilities of a batch."""
        whole = self._compiled.get(len(pixels))
        if whole is not None:
            return whole.infer(pixels)
        parts, start = [], 0
        while start < len(pixels):
            size = next(size for size in self._compiled if size <= len(pixels) - start)
            parts.append(self._compiled[size].infer(pixels[start : start + size]))
            start += size
        return np.concatenate(parts)


class _FixedBatch:
    """A compiled model with one batch size, and its input and output in memory."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._pixels = self._request.get_input_tensor().data
        self._probabilities = self._request.get_output_tensor().data

    def infer(self, pixels: Pixels) -> Probabilities:
        """Probabilities of a batch of exactly this size."""
        np.copyto(self._pixels, pixels)  # OpenVINO refuses read-only arrays, such as those of tensor requests
        self._request.infer()
        probabilities: Probabilities = self._probabilities.copy()
        return probabilities


def _properties(precision: Precision, threads: int) -> dict[str, Any]:
    """One stream of `threads` threads; which cores they run on is the operating system's choice.

    https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
    """
    return {
        # Without it, OpenVINO computes an fp32 file in bf16 where the processor can.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,  # otherwise at most one thread per physical core
        "ENABLE_CPU_PINNING": False,
    }


def require_bf16() -> None:
    """Require native instructions for bf16.

    Raises:
        DeploymentError: the processor has none.
    """
    core = ov.Core()
    if "BF16" not in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"):
        name = core.get_property(_DEVICE, "FULL_DEVICE_NAME")
        raise DeploymentError(
            f"precision = bf16 with runtime = openvino needs a processor with avx512_bf16 or amx_bf16; this one ({name}) "
            "has neither: use fp32"
        )
