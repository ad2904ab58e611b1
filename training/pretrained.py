"""Published weights (see ``weights``) -> bundle, without training."""

from pathlib import Path
from typing import Any, Final

import numpy as np

from bundle.manifest import ImageInput, Origin
from bundle.preprocess import preprocess
from bundle.store import BUNDLES, Bundle
from training.export import Exportable, ExportOptions, Say, export_bundle
from training.models import Classifier, Servable
from training.weights import published

# Photographs that lie in the wheels of scikit-image and scikit-learn: real images of several sizes, formats and
# modes.
_SKIMAGE_IMAGES: Final = (
    "coffee.png",
    "chelsea.png",
    "astronaut.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "camera.png",
    "coins.png",
)
_SKLEARN_IMAGES: Final = ("china.jpg", "flower.jpg")


def import_model(
    name: str,
    root: Path = BUNDLES,
    version: int | None = None,
    say: Say = print,
    wanted: ExportOptions | None = None,
) -> Bundle:
    """A bundle of the published model `name`.

    Raises:
        ModelError: unknown name, or the weights cannot be downloaded.
        ExportError, BundleError: as `export.export_bundle`.
    """
    model = published(name, say)
    say(f"weights: {model.source}")
    images = photographs()
    exportable = Exportable(
        servable=Servable(Classifier(model.network, model.mean, model.std)),
        model=name,
        labels=model.labels,
        input=model.input,
        origin=Origin(kind="imported", source=model.source, architecture=name, dataset="imagenet-1k"),
        golden=images,
        sample=crops(images, model.input, seed=0),
        calibration=crops(images, model.input, seed=1, of_each=24),
    )
    return export_bundle(exportable, root, version, say, wanted)


def photographs() -> list[tuple[str, bytes]]:
    """The photographs in the wheels: names and encoded bytes."""
    import skimage
    import sklearn.datasets

    skimage_folder = Path(skimage.__file__).parent / "data"
    sklearn_folder = Path(sklearn.datasets.__file__).parent / "images"
    paths = [skimage_folder / name for name in _SKIMAGE_IMAGES] + [sklearn_folder / name for name in _SKLEARN_IMAGES]
    return [(path.name, path.read_bytes()) for path in paths]


def crops(
    images: list[tuple[str, bytes]], spec: ImageInput, seed: int, of_each: int = 8
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images seen at several places and sizes: uint8 `[N, 3, H, W]`."""
    import io

    from PIL import Image

    random = np.random.default_rng(seed)
    crops = []
    for _, data in images:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for _ in range(of_each):
            side = int(min(image.size) * random.uniform(0.4, 1))
            left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
            buffer = io.BytesIO()
            image.crop((left, top, left + side, top + side)).save(buffer, "PNG")
            crops.append(preprocess(buffer.getvalue(), spec))
    return np.stack(crops)
