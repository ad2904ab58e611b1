"""Published weights -> bundle, without training."""

import io
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from bundle.manifest import ImageInput, Origin
from bundle.preprocess import Pixels, preprocess
from bundle.store import BUNDLES, Bundle
from training.export import Exportable, ExportOptions, Log, export_bundle
from training.models import Classifier, Servable
from training.weights import load_published

# Photographs in the wheels of scikit-image and scikit-learn, in several sizes, formats and modes.
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
    log: Log = print,
    options: ExportOptions | None = None,
) -> Bundle:
    """Write a bundle of the published model `name`.

    Raises:
        ModelError: unknown name, or the weights cannot be downloaded.
        ExportError, BundleError: see `export.export_bundle`.
    """
    model = load_published(name, log)
    log(f"weights: {model.source}")
    images = photographs()
    exportable = Exportable(
        servable=Servable(Classifier(model.network, model.mean, model.std)),
        model=name,
        labels=model.labels,
        input=model.input,
        origin=Origin(kind="imported", source=model.source, architecture=name, dataset="imagenet-1k"),
        golden=images,
        sample=crops(images, model.input, seed=0),
        calibration=crops(images, model.input, seed=1, per_image=24),
    )
    return export_bundle(exportable, root, version, log, options)


def photographs() -> list[tuple[str, bytes]]:
    """Return names and encoded bytes of the photographs."""
    import skimage
    import sklearn.datasets

    skimage_folder = Path(skimage.__file__).parent / "data"
    sklearn_folder = Path(sklearn.datasets.__file__).parent / "images"
    paths = [skimage_folder / name for name in _SKIMAGE_IMAGES] + [sklearn_folder / name for name in _SKLEARN_IMAGES]
    return [(path.name, path.read_bytes()) for path in paths]


def crops(images: list[tuple[str, bytes]], spec: ImageInput, seed: int, per_image: int = 8) -> Pixels:
    """Return random square crops of the images, preprocessed: uint8 `[N, 3, H, W]`."""
    random = np.random.default_rng(seed)
    crops = []
    for _, data in images:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for _ in range(per_image):
            side = int(min(image.size) * random.uniform(0.4, 1))
            left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
            buffer = io.BytesIO()
            image.crop((left, top, left + side, top + side)).save(buffer, "PPM")  # lossless, and faster than PNG
            crops.append(preprocess(buffer.getvalue(), spec))
    return np.stack(crops)


def held_out_crops(spec: ImageInput) -> Pixels:
    """Return crops of the photographs that calibration has not used, a third of them of altered photographs."""
    images = photographs()
    altered = [(name, _altered(data, name)) for name, data in images]
    return np.concatenate([crops(images, spec, seed=2, per_image=16), crops(altered, spec, seed=3, per_image=8)])


def _altered(data: bytes, name: str) -> bytes:
    """Return the photograph mirrored, with another brightness, and slightly blurred."""
    image = ImageOps.mirror(Image.open(io.BytesIO(data)).convert("RGB"))
    image = ImageEnhance.Brightness(image).enhance(0.7 if len(name) % 2 else 1.2).filter(ImageFilter.GaussianBlur(1))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
