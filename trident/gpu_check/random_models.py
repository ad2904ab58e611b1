"""Bundles of networks with random weights and generated photographs: nothing has to be downloaded.

Batch norms get the statistics of the photographs, and the last layer is scaled so that the answers to different images
differ. Otherwise a wrong answer would be within the tolerance.
"""

import io
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import nn

from bundle.errors import BundleError
from bundle.manifest import ImageInput, Origin
from bundle.preprocess import Pixels, preprocess
from bundle.store import Bundle, find_bundle
from training.datasets import IMAGENET_MEAN, IMAGENET_STD
from training.export import Exportable, ExportOptions, export_bundle
from training.models import Classifier, Servable, build_network, head_of
from trident.gpu_check.context import CheckSettings, StepRows

CLASSES: Final = 1000
GOLDEN_IMAGES: Final = 16
_LOGIT_DEVIATION: Final = 0.3
_QUALITY: Final = 85


def run(settings: CheckSettings, rows: StepRows) -> None:
    """Write a bundle per model; one row per file that the later steps serve."""
    for model in settings.models:
        bundle = random_bundle(settings, model)
        image_kib = sum(len(data) for _, data in bundle.golden_inputs()) / 1024 / GOLDEN_IMAGES
        for artefact in bundle.manifest.artefacts:
            if artefact.format == "torchscript":
                rows.add(
                    model=model,
                    precision=artefact.precision,
                    MiB=artefact.bytes / 2**20,
                    input=f"{bundle.manifest.input.width}x{bundle.manifest.input.height}",
                    image=f"JPEG {'x'.join(map(str, settings.image_size))}, {image_kib:.0f} KiB",
                    **{"largest difference to eager": artefact.max_abs_difference},
                )


def bundles_folder(settings: CheckSettings) -> Path:
    """Where the bundles are, in the layout of `trident`'s working folder."""
    return settings.work / "artifacts" / "bundles"


def random_bundle(settings: CheckSettings, model: str) -> Bundle:
    """The bundle of a model; it is written if there is none yet."""
    root = bundles_folder(settings)
    try:
        return find_bundle(model, root)
    except BundleError:
        pass
    side = 64 if settings.quick else 224
    spec = ImageInput(height=side, width=side, resize="crop", filter="bilinear", shorter_side=side * 8 // 7)
    golden = [(f"{number:02d}.jpg", photograph(number, *settings.image_size)) for number in range(GOLDEN_IMAGES)]
    pixels = np.stack([preprocess(data, spec) for _, data in golden])
    exportable = Exportable(
        servable=Servable(_random_classifier(model, side, pixels)),
        model=model,
        labels=tuple(f"class-{number}" for number in range(CLASSES)),
        input=spec,
        origin=Origin(kind="imported", source="random weights", architecture=model, dataset="generated"),
        golden=golden,
        sample=pixels[:2],
        calibration=pixels[:2],
    )
    halves = tuple(precision for precision in settings.precisions if precision != "fp32")
    return export_bundle(exportable, root, options=ExportOptions(precisions=halves, max_accuracy_drop=1.0))


def photograph(seed: int, width: int, height: int) -> bytes:
    """A JPEG with coarse and fine detail, of about the size of a photograph's."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = random.normal(0, 12, (height // 2 + 1, width // 2 + 1, 1)).repeat(2, 0).repeat(2, 1)[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _random_classifier(model: str, side: int, pixels: Pixels) -> Classifier:
    torch.manual_seed(0)
    classifier = Classifier(build_network(model, CLASSES, side), IMAGENET_MEAN, IMAGENET_STD)
    images = torch.from_numpy(pixels)
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0  # the statistics become those of the next batch
        classifier.train()(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        logits = classifier.eval()(images)
        head = head_of(classifier.network)[1]
        scale = _LOGIT_DEVIATION / logits.std(0).mean()
        head.bias.copy_((head.bias - logits.mean(0)) * scale)
        head.weight.mul_(scale)
    return classifier
