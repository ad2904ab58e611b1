"""onnxruntime, on the CPU or a CUDA device."""

from pathlib import Path

import onnxruntime as ort

from serving.errors import BundleError, DeploymentError
from serving.postprocess import Probabilities
from serving.preprocess import Pixels
from serving.settings import Device


class OnnxSession:
    """An onnxruntime session of a bundle's ONNX file."""

    def __init__(self, path: Path, device: Device, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait for work take the cores from everything else in the process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = _providers(device)
        try:
            self._session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's own exceptions share no base
            raise BundleError(f"onnxruntime cannot load {path}: {error}") from error

    def infer(self, pixels: Pixels) -> Probabilities:
        """Probabilities of a batch."""
        probabilities: Probabilities = self._session.run(["probabilities"], {"image": pixels})[0]
        return probabilities


def _providers(device: Device) -> list[str]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise DeploymentError(
            "device = cuda needs onnxruntime-gpu (`make setup RUNTIME=gpu`); the installed onnxruntime has no CUDA provider"
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
