"""The model alone, without decoding: which way of calling it pays, by batch size.

| way | what it is |
|---|---|
| plain | one call: pageable memory, a copy to the device, a launch per kernel, a copy back |
| static | `StaticBatches` without graphs: fixed buffers, pinned memory, one synchronisation |
| graph | `StaticBatches` with CUDA graphs: what the service runs on a CUDA device |
| compile | the bundle's .pt2 file by torch.compile, called like `plain` |
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

from bundle.errors import TridentError
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels, preprocess
from bundle.store import Bundle
from serving.runtimes.static_batches import Module, StaticBatches
from serving.runtimes.torchscript_module import load_module, use_full_precision
from trident.gpu_check.context import CheckSettings, StepRows, short
from trident.gpu_check.random_models import random_bundle

_LEAST_CALLS: Final = 3
_MEASURED_S: Final = 1.0
_QUICK_S: Final = 0.05

Infer = Callable[[Pixels], Probabilities]


def run(settings: CheckSettings, rows: StepRows) -> None:
    """One row per model, precision and way; images per second by batch size."""
    if settings.device == "cuda":
        use_full_precision()
    sizes = sorted({1, min(8, settings.max_batch_size), settings.max_batch_size})
    wrong = []
    for model in settings.models:
        bundle = random_bundle(settings, model)
        pixels = np.stack([preprocess(data, bundle.manifest.input) for _, data in bundle.golden_inputs()])
        for precision in settings.precisions:
            tolerance = bundle.artefact("torchscript", precision).tolerance
            for way, infer in _ways(bundle, precision, settings, rows):
                difference = _largest_difference(infer, bundle, pixels[: settings.max_batch_size])
                rates = {f"images/s at {size}": _images_per_s(infer, pixels, size, settings) for size in sizes}
                rows.add(model=model, precision=precision, way=way, **{"largest difference": difference}, **rates)
                if not difference <= tolerance:
                    wrong.append(f"{model}, {precision}, {way}: {difference:.1e} (allowed {tolerance:.0e})")
    if wrong:
        raise TridentError(f"probabilities differ from the golden ones: {'; '.join(wrong)}")


def _ways(bundle: Bundle, precision: str, settings: CheckSettings, rows: StepRows) -> Iterator[tuple[str, Infer]]:
    device = torch.device(settings.device)
    module = load_module(bundle.file(bundle.artefact("torchscript", precision)), device)  # type: ignore[arg-type]
    yield "plain", _plain(module, device)
    shape = (3, bundle.manifest.input.height, bundle.manifest.input.width)
    yield "static", StaticBatches(module, device, shape, settings.max_batch_size, graphs=False).infer
    if settings.device == "cuda":
        batches = StaticBatches(module, device, shape, settings.max_batch_size)
        if batches.has_graphs:
            yield "graph", batches.infer
        else:
            rows.skip(f"graphs of {bundle.name} in {precision}: the capture failed; the step's log has the reason")
    else:
        rows.skip(f"graphs of {bundle.name} in {precision}: they need a CUDA device")
    if precision != "fp32" or settings.quick:
        return  # the bundle has its .pt2 file in fp32 only
    try:
        program = move_to_device_pass(torch.export.load(bundle.file(bundle.artefact("pt2"))), device)
        compiled = _plain(torch.compile(program.module()), device)
        compiled(np.zeros((2, *shape), np.uint8))
        yield "compile", compiled
    except Exception as error:  # it needs a C++ compiler, and on a GPU the package triton
        rows.skip(f"torch.compile of {bundle.name}: {short(error)}")


def _plain(module: Module, device: torch.device) -> Infer:
    def infer(pixels: Pixels) -> Probabilities:
        with torch.inference_mode():
            probabilities: Probabilities = module(torch.from_numpy(pixels).to(device)).cpu().numpy()
            return probabilities

    return infer


def _largest_difference(infer: Infer, bundle: Bundle, pixels: Pixels) -> float:
    """To the golden probabilities, in one batch."""
    return float(np.abs(infer(pixels) - bundle.golden_probabilities()[: len(pixels)]).max())


def _images_per_s(infer: Infer, pixels: Pixels, size: int, settings: CheckSettings) -> float:
    batch = np.ascontiguousarray(pixels[np.arange(size) % len(pixels)])
    least_s = _QUICK_S if settings.quick else _MEASURED_S
    for _ in range(_LEAST_CALLS):
        infer(batch)
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < least_s or calls < _LEAST_CALLS:
        infer(batch)
        calls += 1
    return calls * size / elapsed
