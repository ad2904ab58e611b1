"""TorchScript by PyTorch, on the CPU or a CUDA device."""

import warnings
from pathlib import Path

import torch

from bundle.errors import BundleError, DeploymentError
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels
from serving.settings import Device


class TorchScriptModule:
    """A bundle's TorchScript file."""

    def __init__(self, path: Path, device: Device, threads: int) -> None:
        if device == "tensorrt":
            raise DeploymentError("device = tensorrt needs runtime = onnxruntime")
        if device == "cuda" and not torch.cuda.is_available():
            raise DeploymentError("device = cuda: torch finds no CUDA device on this machine")
        torch.set_num_threads(threads)  # of the whole process
        self._device = torch.device(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated upstream
            try:
                self._module = torch.jit.load(path, map_location=self._device).eval()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                raise BundleError(f"torch cannot load {path}: {error}") from error

    def infer(self, pixels: Pixels) -> Probabilities:
        """Probabilities of a batch."""
        with torch.inference_mode():
            probabilities: Probabilities = self._module(torch.from_numpy(pixels).to(self._device)).cpu().numpy()
            return probabilities
