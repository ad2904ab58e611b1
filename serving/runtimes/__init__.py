"""Runtimes: uint8 pixels `[N, 3, H, W]` in, float32 probabilities `[N, classes]` out. Every server can run every runtime."""

from contextlib import suppress
from typing import Final, Protocol

import numpy as np

from bundle.errors import BundleError, DeploymentError
from bundle.golden import compare_probabilities
from bundle.manifest import Artefact, Format, Precision
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels, preprocess
from bundle.store import Bundle
from serving.settings import Device, RuntimeName, ServerSettings, ServingSettings

_FORMATS: Final[dict[RuntimeName, Format]] = {
    "onnxruntime": "onnx",
    "torchscript": "torchscript",
    "openvino": "onnx",
}
_PRECISIONS: Final[dict[RuntimeName, tuple[Precision, ...]]] = {
    "onnxruntime": ("fp32", "fp16", "int8", "int8-dynamic"),
    "torchscript": ("fp32", "bf16"),
    "openvino": ("fp32", "bf16", "int8"),
}


class Runtime(Protocol):
    """A loaded copy of the model. `infer` blocks; it is safe to call from one thread at a time."""

    def infer(self, pixels: Pixels) -> Probabilities:
        """Probabilities of a batch."""


def artefact_for(bundle: Bundle, runtime: RuntimeName, precision: Precision) -> Artefact:
    """The bundle's file for a runtime; its `tolerance` says how far from the golden answers it may be.

    Raises:
        DeploymentError: the runtime does not compute in this precision.
        BundleError: the bundle has no such artefact.
    """
    if precision not in _PRECISIONS[runtime]:
        computed = ", ".join(_PRECISIONS[runtime])
        raise DeploymentError(f"runtime = {runtime} does not compute {precision}; it computes {computed}")
    return bundle.artefact(_FORMATS[runtime], precision)


def check_deployable(bundle: Bundle, settings: ServingSettings) -> None:
    """Find out before servers start whether they can serve the bundle with the settings' runtime and precision.

    Raises:
        BundleError, DeploymentError: as `artefact_for`, or this machine's processor lacks the instructions.
    """
    artefact_for(bundle, settings.runtime, settings.precision)
    if (settings.runtime, settings.precision) == ("openvino", "bf16"):
        with suppress(ModuleNotFoundError):  # the servers may have other environments
            from serving.runtimes.openvino_model import require_bf16

            require_bf16()


def open_runtime(
    bundle: Bundle, runtime: RuntimeName, precision: Precision, device: Device, threads: int, max_batch_size: int = 1
) -> Runtime:
    """Load the bundle's model, for batches up to `max_batch_size`.

    Raises:
        BundleError: the bundle has no such artefact.
        DeploymentError: the runtime or the device is not available, or does not compute in this precision.
    """
    path = bundle.file(artefact_for(bundle, runtime, precision))
    try:
        if runtime == "onnxruntime":
            from serving.runtimes.onnx_session import OnnxSession

            return OnnxSession(path, device, threads, max_batch_size)
        if runtime == "openvino":
            from serving.runtimes.openvino_model import OpenVinoModel

            return OpenVinoModel(path, precision, device, threads, max_batch_size)
        from serving.runtimes.torchscript_module import TorchScriptModule

        return TorchScriptModule(path, device, threads, bundle.manifest.input, max_batch_size)
    except ModuleNotFoundError as error:
        raise DeploymentError(
            f"runtime {runtime} needs the package {error.name}, which is not installed here"
        ) from error


def ready_runtime(bundle: Bundle, settings: ServerSettings) -> Runtime:
    """A copy of the model, loaded, warmed up at every batch size, and checked against its golden answers.

    Raises:
        BundleError: as `open_runtime`, or a golden answer is not reproduced.
    """
    runtime = open_runtime(
        bundle, settings.runtime, settings.precision, settings.device, settings.threads, settings.max_batch_size
    )
    warm_up(runtime, bundle, settings.max_batch_size)
    require_golden(runtime, bundle, artefact_for(bundle, settings.runtime, settings.precision).tolerance)
    return runtime


def warm_up(runtime: Runtime, bundle: Bundle, max_batch_size: int) -> None:
    """Run batches of 1, 2, 4 ... `max_batch_size`, twice each: runtimes allocate and specialise for every new shape."""
    spec = bundle.manifest.input
    sizes = sorted({*(2**power for power in range(max_batch_size.bit_length())), max_batch_size})
    for size in sizes * 2:
        runtime.infer(np.zeros((size, 3, spec.height, spec.width), np.uint8))


def require_golden(runtime: Runtime, bundle: Bundle, tolerance: float) -> None:
    """Compare the runtime's answers with the bundle's golden ones.

    Raises:
        BundleError: one is wrong.
    """
    for example in bundle.golden_examples():
        pixels = preprocess(example.data, bundle.manifest.input)
        fault = compare_probabilities(runtime.infer(pixels[np.newaxis])[0], example.expected.probabilities, tolerance)
        if fault is not None:
            raise BundleError(f"bundle {bundle.name} does not reproduce its golden answer to {example.name}: {fault}")
