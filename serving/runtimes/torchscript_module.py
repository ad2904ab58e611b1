"""TorchScript by PyTorch, on the CPU or a CUDA device."""

import warnings
from pathlib import Path
from typing import Any

import torch

from bundle.errors import BundleError, DeploymentError
from bundle.manifest import ImageInput
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels
from serving.runtimes.static_batches import StaticBatches
from serving.settings import Device


class TorchScriptModule:
    """A bundle's TorchScript file, for batches up to `max_batch_size` (on a CUDA device)."""

    def __init__(self, path: Path, device: Device, threads: int, spec: ImageInput, max_batch_size: int = 1) -> None:
        if device == "tensorrt":
            raise DeploymentError("device = tensorrt needs runtime = onnxruntime")
        if device == "cuda" and not torch.cuda.is_available():
            raise DeploymentError("device = cuda: torch finds no CUDA device on this machine")
        torch.set_num_threads(threads)  # of the whole process
        self._module = load_module(path, torch.device(device))
        self._batches: StaticBatches | None = None
        if device == "cuda":
            use_full_precision()
            shape = (3, spec.height, spec.width)
            self._batches = StaticBatches(self._module, torch.device(device), shape, max_batch_size)

    def infer(self, pixels: Pixels) -> Probabilities:
        """Probabilities of a batch."""
        if self._batches is not None:
            return self._batches.infer(pixels)
        with torch.inference_mode():
            probabilities: Probabilities = self._module(torch.from_numpy(pixels)).numpy()
            return probabilities


def load_module(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """The module of a TorchScript file, with its weights on `device`.

    Raises:
        BundleError: torch cannot load it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated upstream
        try:
            module: torch.jit.ScriptModule = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise BundleError(f"torch cannot load {path}: {error}") from error
    return module


def use_full_precision() -> None:
    """Let CUDA compute fp32 in fp32, and TorchScript run as traced. Settings of the whole process.

    TensorFloat-32, torch's default for convolutions, has 10 bits of mantissa: probabilities would differ from the golden
    ones by more than an fp32 file may. Where speed matters more, serve bf16. A CUDA graph saves most of what TorchScript's
    own fusion of kernels would, and the fusion compiles for every new batch size.
    """
    backends: Any = torch.backends  # torch's annotations lack these attributes
    for operation in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul):
        operation.fp32_precision = "ieee"
    torch.jit.set_fusion_strategy([])
