"""What `trident precisions` does and shows."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
from rich.progress import Progress
from rich.table import Table

from bundle.preprocess import Pixels, preprocess
from bundle.provenance import package_versions
from bundle.store import Bundle
from serving.runtimes.precisions import BATCH, SURE, Measured, measure_variants, open_variants
from trident.console.output import console

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "torch", "openvino")


def show_precisions(bundle: Bundle, threads: int, rounds: int) -> None:
    """Measure and print the table."""
    images, pixels = _compared(bundle)
    with _on_cores(threads) as cores:
        models = open_variants(bundle, threads, lambda reason: console.print(reason, style="yellow", markup=False))
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("rounds", total=rounds)
            measured = measure_variants(models, bundle, pixels, rounds, threads, lambda: progress.advance(task))
    console.print(_head(bundle, threads, cores, rounds, images), markup=False, soft_wrap=True)
    console.print(_table(measured))


def _compared(bundle: Bundle) -> tuple[str, Pixels]:
    """Images on which the top-1 classes are compared, and what they are: uint8 `[N, 3, H, W]`.

    For imported ImageNet weights, crops of photographs; otherwise the golden inputs, because the accuracy drop is known.
    """
    manifest = bundle.manifest
    if manifest.origin.kind == "imported":
        from training.pretrained import held_out_crops

        crops = held_out_crops(manifest.input)
        return f"{len(crops)} crops of photographs", crops
    golden = np.stack([preprocess(data, manifest.input) for _, data in bundle.golden_inputs()])
    return f"{len(golden)} golden images", golden


@contextmanager
def _on_cores(count: int) -> Iterator[list[int]]:
    """Keep this process on its last cores, one per thread of the model."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)[-count:]
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def _head(bundle: Bundle, threads: int, cores: list[int], rounds: int, images: str) -> str:
    from training.benchmark.processor import processor

    versions = ", ".join(
        f"{name} {version}" for name, version in package_versions(_RUNTIMES).items() if name != "python"
    )
    drops = [a.accuracy_inputs for a in bundle.manifest.artefacts if a.accuracy_inputs is not None]
    drop = f"accuracy drop at export, on {drops[0]} test images; " if drops else ""
    unit = "ms of CPU time" if threads == 1 else "ms"
    return (
        f"{bundle.name}, {datetime.now(UTC):%Y-%m-%d}, {processor()}\n"
        f"{threads} thread(s) on {len(cores)} core(s), {rounds} rounds; {versions}\n"
        f"{unit} per image: the model alone, with decoding, and the model alone in batches of {BATCH}\n"
        f"{drop}top-1: agreement with fp32 on {images}; sure: where fp32's probability is at least {SURE}\n"
    )


def _table(measured: list[Measured]) -> Table:
    table = Table(
        "runtime", "precision", "MiB", "model", "speed-up", "decoded", f"of {BATCH}", "drop", "top-1", "sure",
        box=None, header_style="dim",
    )  # fmt: skip
    for one in measured:
        artefact = one.variant.artefact
        table.add_row(
            one.variant.runtime,
            one.variant.precision,
            f"{artefact.bytes / 2**20:.1f}",
            f"{one.model_ms:.3g}",
            f"{measured[0].model_ms / one.model_ms:.2f}",
            f"{one.decoded_ms:.3g}",
            f"{one.batched_ms:.3g}",
            "-" if artefact.accuracy_drop is None else f"{artefact.accuracy_drop:.2%}",
            f"{one.agreement:.1%}",
            "-" if one.sure_agreement is None else f"{one.sure_agreement:.1%}",
        )
    return table
