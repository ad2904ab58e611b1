"""The runtimes and precisions of one bundle on this machine: ms per image, and how often the top-1 class is fp32's.

The models take turns in rounds, so that other load on the machine meets all of them. Each turn is a block of consecutive
calls, because a server calls one model, too.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Final, get_args

import numpy as np

from bundle.errors import BundleError, DeploymentError
from bundle.manifest import Artefact, Precision
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels, preprocess
from bundle.store import Bundle
from serving.runtimes import Runtime, artefact_for, open_runtime, require_golden, warm_up
from serving.settings import RuntimeName

BATCH: Final = 8
SURE: Final = 0.5
_BLOCK_S: Final = 0.1


@dataclass(frozen=True)
class Variant:
    """A runtime and a precision that the bundle has a file for."""

    runtime: RuntimeName
    precision: Precision
    artefact: Artefact


@dataclass(frozen=True)
class Measured:
    """A variant's ms per image (medians over the rounds) and its agreement with onnxruntime's fp32.

    With one thread, ms are CPU time: what a core of its own would need, also if other work shares it.

    Args:
        model_ms: the model alone, one image at a time.
        decoded_ms: decode and model, one image at a time.
        batched_ms: the model alone, in batches of BATCH.
        agreement: share of the images with the same top-1 class.
        sure_agreement: the same, of the images for which fp32's top-1 probability is at least SURE; None: there are none.
    """

    variant: Variant
    model_ms: float
    decoded_ms: float
    batched_ms: float
    agreement: float
    sure_agreement: float | None


def variants(bundle: Bundle) -> Iterator[Variant]:
    """What the bundle has, onnxruntime's fp32 first."""
    for runtime in get_args(RuntimeName):
        for precision in get_args(Precision):
            try:
                yield Variant(runtime, precision, artefact_for(bundle, runtime, precision))
            except (BundleError, DeploymentError):
                continue


def open_variants(bundle: Bundle, threads: int, on_skip: Callable[[str], None]) -> dict[Variant, Runtime]:
    """Load and warm up what can run here, and check it against the golden answers; report what cannot run.

    Raises:
        BundleError: a golden answer is not reproduced.
    """
    opened = {}
    for variant in variants(bundle):
        try:
            runtime = open_runtime(bundle, variant.runtime, variant.precision, "cpu", threads, BATCH)
        except DeploymentError as error:
            on_skip(f"{variant.runtime} {variant.precision} is left out: {error.message}")
            continue
        require_golden(runtime, bundle, variant.artefact.tolerance)
        warm_up(runtime, bundle, BATCH)
        opened[variant] = runtime
    return opened


def measure_variants(
    models: dict[Variant, Runtime],
    bundle: Bundle,
    pixels: Pixels,
    rounds: int,
    threads: int = 1,
    on_round: Callable[[], None] = lambda: None,
) -> list[Measured]:
    """Measure each model; the agreement is that on `pixels`, uint8 `[N, 3, H, W]`, with the first model's answers."""
    images = [data for _, data in bundle.golden_inputs()]
    clock = time.process_time if threads == 1 else time.perf_counter
    ways = [_model_alone(images, bundle, 1), _decode_and_model(images, bundle), _model_alone(images, bundle, BATCH)]
    ms: dict[tuple[Variant, int], list[float]] = {(variant, way): [] for variant in models for way in range(len(ways))}
    for _ in range(rounds):
        for variant, model in models.items():
            for number, way in enumerate(ways):
                ms[variant, number].append(_ms_per_image(way, model, clock))
        on_round()
    answers = {variant: _in_batches(model, pixels) for variant, model in models.items()}
    fp32 = next(iter(answers.values()))
    sure = fp32.max(1) >= SURE
    result = []
    for variant, probabilities in answers.items():
        same = probabilities.argmax(1) == fp32.argmax(1)
        model_ms, decoded_ms, batched_ms = (median(ms[variant, number]) for number in range(len(ways)))
        sure_agreement = float(same[sure].mean()) if sure.any() else None
        result.append(Measured(variant, model_ms, decoded_ms, batched_ms, float(same.mean()), sure_agreement))
    return result


# One call of a way computes the images from a number on, and returns how many.
_Way = Callable[[Runtime, int], int]


def _model_alone(images: list[bytes], bundle: Bundle, size: int) -> _Way:
    pixels = [preprocess(data, bundle.manifest.input) for data in images]
    batches = [np.stack([pixels[(first + i) % len(pixels)] for i in range(size)]) for first in range(len(pixels))]

    def call(model: Runtime, first: int) -> int:
        model.infer(batches[first % len(batches)])
        return size

    return call


def _decode_and_model(images: list[bytes], bundle: Bundle) -> _Way:
    def call(model: Runtime, first: int) -> int:
        model.infer(preprocess(images[first % len(images)], bundle.manifest.input)[np.newaxis])
        return 1

    return call


def _ms_per_image(way: _Way, model: Runtime, clock: Callable[[], float]) -> float:
    way(model, 0)  # brings the model back into the caches
    done, started = 0, clock()
    while (elapsed := clock() - started) < _BLOCK_S or not done:
        done += way(model, done)
    return elapsed * 1000 / done


def _in_batches(model: Runtime, pixels: Pixels) -> Probabilities:
    return np.concatenate([model.infer(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)])
