"""onnxruntime, on the CPU, a CUDA device, or by TensorRT on one."""

from pathlib import Path
from typing import Any

import onnxruntime as ort

from bundle.errors import BundleError, DeploymentError
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels
from serving.settings import Device

_INPUT, _OUTPUT = "image", "probabilities"


class OnnxSession:
    """An onnxruntime session of a bundle's ONNX file."""

    def __init__(self, path: Path, device: Device, threads: int, max_batch_size: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait for work take the cores from everything else in the process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = _providers(device, path, max_batch_size)
        try:
            self._session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's own exceptions share no base
            raise BundleError(f"onnxruntime cannot load {path}: {error}") from error
        self._binds = device != "cpu"

    def infer(self, pixels: Pixels) -> Probabilities:
        """Probabilities of a batch."""
        probabilities: Probabilities
        if not self._binds:
            probabilities = self._session.run([_OUTPUT], {_INPUT: pixels})[0]
            return probabilities
        # Bound to the device, a run copies the pixels there and the probabilities back, and synchronises once.
        # https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(_INPUT, ort.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0))
        binding.bind_output(_OUTPUT, "cpu")
        self._session.run_with_iobinding(binding)
        probabilities = binding.get_outputs()[0].numpy()
        return probabilities


def _providers(device: Device, path: Path, max_batch_size: int) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    wanted = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[device]
    if wanted not in ort.get_available_providers():
        raise DeploymentError(
            f"device = {device} needs onnxruntime-gpu (`rm -r .venv; make setup RUNTIME=gpu`); "
            f"the installed onnxruntime has no {wanted}"
        )
    cuda = ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"})
    if device == "cuda":
        return [cuda, "CPUExecutionProvider"]
    height, width = _input_size(path)
    shape = f"x3x{height}x{width}"
    tensorrt = {
        # One engine for every batch size up to the largest, kept beside the run so that the next start is quick.
        "trt_profile_min_shapes": f"{_INPUT}:1{shape}",
        "trt_profile_opt_shapes": f"{_INPUT}:{max_batch_size}{shape}",
        "trt_profile_max_shapes": f"{_INPUT}:{max_batch_size}{shape}",
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": "trt_engines",
        "trt_timing_cache_enable": True,
    }
    return [("TensorrtExecutionProvider", tensorrt), cuda, "CPUExecutionProvider"]


def _input_size(path: Path) -> tuple[int, int]:
    """Height and width of the model's input."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    _, _, height, width = session.get_inputs()[0].shape
    return int(height), int(width)
