"""`python -m training.benchmark.int8`: lower precisions of an imported model compared with fp32, on this processor.

The images are crops of scikit-image's and scikit-learn's photographs. None of them was used for calibration, and some
are mirrored, darkened and blurred. Times are medians of interleaved rounds in onnxruntime.
"""

import argparse
import io
import time
from statistics import median

import numpy as np
import onnxruntime
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from rich.console import Console
from rich.table import Table

from bundle.manifest import Precision
from bundle.preprocess import preprocess
from bundle.store import find_bundle
from training.benchmark.processor import processor
from training.comparison import infer_in_batches
from training.formats import read_onnx
from training.pretrained import crops, photographs


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="MODEL or MODEL:VERSION with an int8 file; default: the newest efficientnet_lite0"
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    bundle = find_bundle(given.model or "efficientnet_lite0")
    files = {a.precision: bundle.file(a) for a in bundle.manifest.artefacts if a.format == "onnx"}
    images = photographs()
    pixels = np.concatenate(
        [
            crops(images, bundle.manifest.input, seed=2, per_image=16),
            crops([(name, _altered(data, name)) for name, data in images], bundle.manifest.input, seed=3, per_image=8),
        ]
    )
    models = {precision: read_onnx(path, given.threads) for precision, path in files.items()}
    answers = {precision: infer_in_batches(model, pixels) for precision, model in models.items()}
    whole_images = np.stack([preprocess(data, bundle.manifest.input) for _, data in images])
    whole_answers = {precision: infer_in_batches(model, whole_images) for precision, model in models.items()}
    confident = answers["fp32"].max(1) >= 0.5
    seconds: dict[tuple[Precision, int], list[float]] = {(name, size): [] for name in models for size in (1, 8)}
    for number in range(given.rounds + 2):
        for (name, size), times in seconds.items():
            started = time.perf_counter()
            models[name](pixels[:size])
            if number >= 2:
                times.append(time.perf_counter() - started)
    console = Console()
    console.print(
        f"{bundle.name}, {given.threads} thread(s), onnxruntime {onnxruntime.__version__}, {processor()}\n"
        f"{len(pixels)} crops, of which {confident.sum()} have an fp32 probability of at least 0.5; "
        f"{len(whole_images)} whole photographs"
    )
    table = Table(
        "onnx", "MiB", "ms, batch 1", "speed-up", "ms, batch 8", "speed-up", "top-1 agreement", "confident crops",
        "whole photographs",
        box=None, header_style="dim",
    )  # fmt: skip
    for name, path in files.items():
        ms = {size: median(seconds[name, size]) * 1000 for size in (1, 8)}
        gain = {size: median(seconds["fp32", size]) / median(seconds[name, size]) for size in (1, 8)}
        same = answers[name].argmax(1) == answers["fp32"].argmax(1)
        same_whole = whole_answers[name].argmax(1) == whole_answers["fp32"].argmax(1)
        table.add_row(
            name,
            f"{path.stat().st_size / 2**20:.1f}",
            f"{ms[1]:.1f}",
            f"{gain[1]:.2f}",
            f"{ms[8]:.1f}",
            f"{gain[8]:.2f}",
            f"{same.mean():.1%}",
            f"{same[confident].mean():.1%}",
            f"{same_whole.sum()} of {len(whole_images)}",
        )
    console.print(table)


def _altered(data: bytes, name: str) -> bytes:
    """Return the photograph mirrored, with another brightness, and slightly blurred."""
    image = ImageOps.mirror(Image.open(io.BytesIO(data)).convert("RGB"))
    image = ImageEnhance.Brightness(image).enhance(0.7 if len(name) % 2 else 1.2).filter(ImageFilter.GaussianBlur(1))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
