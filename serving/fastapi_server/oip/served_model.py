"""A model under the names and shapes of the Open Inference Protocol.

A bundle `digits` appears as two models, with the same names and shapes as in Triton, so that a client works with both
servers:

    digits              image: BYTES [N, 1], encoded images       -> answer: BYTES [N, 1], JSON
    digits_classifier   image: UINT8 [N, 3, H, W], pixels         -> probabilities: FP32 [N, classes]

As in Triton, each version also appears as `digits_v3` and `digits_v3_classifier`.
"""

import re
from dataclasses import dataclass
from typing import Final

from bundle.errors import UnknownModelError
from serving.fastapi_server.models.hosting import HostedModel, Hosting
from serving.settings import RuntimeName

CLASSIFIER: Final = "_classifier"
_VERSIONED: Final = re.compile(r"(.+)_v([0-9]{1,9})")
_PLATFORMS: Final[dict[RuntimeName, str]] = {
    "onnxruntime": "onnxruntime_onnx",
    "torchscript": "pytorch_libtorch",
    "openvino": "openvino",
}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output tensor; -1 in the shape is any size."""

    name: str
    datatype: str
    shape: list[int]


@dataclass(frozen=True)
class ServedModel:
    """A hosted model under one of its names: from images to answers, or (`is_classifier`) from pixels to probabilities."""

    name: str
    hosted: HostedModel
    is_classifier: bool

    @property
    def input(self) -> TensorSpec:
        """The one input."""
        spec = self.hosted.bundle.manifest.input
        if self.is_classifier:
            return TensorSpec("image", "UINT8", [-1, 3, spec.height, spec.width])
        return TensorSpec("image", "BYTES", [-1, 1])

    @property
    def output(self) -> TensorSpec:
        """The one output."""
        if self.is_classifier:
            return TensorSpec("probabilities", "FP32", [-1, self.hosted.bundle.manifest.output.classes])
        return TensorSpec("answer", "BYTES", [-1, 1])

    def platform(self, runtime: RuntimeName) -> str:
        """Triton's word for what runs the model."""
        return _PLATFORMS[runtime] if self.is_classifier else "ensemble"


def find_served(hosting: Hosting, model: str, version: str | None) -> ServedModel:
    """Find the model that a request's path names.

    Raises:
        UnknownModelError, UnavailableError.
    """
    if version is not None and not (version.isdecimal() and len(version) <= 9):
        raise UnknownModelError(f"{model} has no version {version[:20]!r}")
    number = int(version) if version is not None else None
    base, is_classifier = model, False
    if model.endswith(CLASSIFIER) and not hosting.versions(model):
        base, is_classifier = model.removesuffix(CLASSIFIER), True
    versioned = _VERSIONED.fullmatch(base)
    if versioned is not None and not hosting.versions(base):
        base, number = versioned[1], int(versioned[2])
    return ServedModel(model, hosting.find(base, number), is_classifier)
