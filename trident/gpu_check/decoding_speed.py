"""Decoding JPEGs: by Pillow in threads, as the service does, and by torchvision on the device (nvJPEG on a CUDA device).

torchvision's decoder and resize are not the bundle's preprocessing. The row has the largest difference of a pixel and of a
probability: a server may decode this way only if its answers stay within the tolerance.
"""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bundle.manifest import ImageInput
from bundle.preprocess import Pixels, preprocess
from bundle.store import Bundle
from serving.runtimes.torchscript_module import load_module, use_full_precision
from trident.gpu_check.context import CheckSettings, StepRows, short
from trident.gpu_check.random_models import random_bundle

_MEASURED_S: Final = 1.0
_QUICK_S: Final = 0.05
_CHUNK: Final = 8  # images per task of a thread


def run(settings: CheckSettings, rows: StepRows) -> None:
    """One row per way to decode."""
    if settings.device == "cuda":
        use_full_precision()
    bundle = random_bundle(settings, settings.models[0])
    images = [data for _, data in bundle.golden_inputs()] * max(1, settings.max_batch_size // 16)
    spec = bundle.manifest.input
    cores = len(os.sched_getaffinity(0))
    for threads in sorted({1, max(1, cores // 2), cores}):
        with ThreadPoolExecutor(threads) as pool:
            chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)] * threads

            def decode_all(pool: ThreadPoolExecutor = pool, chunks: Sequence[list[bytes]] = chunks) -> int:
                return sum(pool.map(lambda chunk: len([preprocess(data, spec) for data in chunk]), chunks))

            rows.add(decoder="Pillow", threads=threads, **{"images/s": _images_per_s(decode_all, settings)})
    name = "nvJPEG (torchvision)" if settings.device == "cuda" else "torchvision"
    try:
        device = torch.device(settings.device)

        def decode_on_device() -> int:
            pixels = decoded_on_device(images, spec, device)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return len(pixels)

        decode_on_device()
        rows.add(
            decoder=name,
            threads=1,
            **{"images/s": _images_per_s(decode_on_device, settings)},
            **_differences(bundle, images[:16], device),
        )
    except Exception as error:  # torchvision without nvJPEG raises RuntimeError; without libjpeg it lacks the operator
        rows.skip(f"{name}: {short(error)}")


def decoded_on_device(images: Sequence[bytes], spec: ImageInput, device: torch.device) -> Tensor:
    """Decode and resize (policy `crop`) on the device: uint8 `[N, 3, H, W]`."""
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchCodec is to replace it
        decoded = decode_jpeg(data, mode=ImageReadMode.RGB, device=device)
    return torch.stack([_resized(image, spec) for image in decoded])


def _resized(image: Tensor, spec: ImageInput) -> Tensor:
    assert spec.shorter_side is not None
    height, width = image.shape[1:]
    scale = min(height, width) / spec.shorter_side
    box_height, box_width = round(spec.height * scale), round(spec.width * scale)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    box = image[None, :, top : top + box_height, left : left + box_width].float()
    resized = interpolate(box, (spec.height, spec.width), mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _differences(bundle: Bundle, images: Sequence[bytes], device: torch.device) -> dict[str, Any]:
    """To the bundle's preprocessing: of a pixel (levels of 256), and of a golden probability."""
    artefact = bundle.artefact("torchscript")
    module = load_module(bundle.file(artefact), device)
    expected: Pixels = np.stack([preprocess(data, bundle.manifest.input) for data in images])
    pixels = decoded_on_device(images, bundle.manifest.input, device)
    with torch.inference_mode():
        probabilities = module(pixels).cpu().numpy()
    difference = float(np.abs(probabilities - bundle.golden_probabilities()[: len(images)]).max())
    return {
        "largest difference of a pixel": int(np.abs(pixels.cpu().numpy().astype(int) - expected).max()),
        "of a probability": difference,
        "within tolerance": "yes" if difference <= artefact.tolerance else f"no ({artefact.tolerance:.0e})",
    }


def _images_per_s(decode: Callable[[], int], settings: CheckSettings) -> float:
    least_s = _QUICK_S if settings.quick else _MEASURED_S
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < least_s:
        done += decode()
    return done / elapsed
