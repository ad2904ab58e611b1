"""A run's folder -> report.html: one file that needs no network."""

import base64
import io
import math
from pathlib import Path
from typing import Any, Final

import jinja2
from PIL import Image

from bundle.atomic_file import atomic_write
from bundle.provenance import git_revision, package_versions
from training.datasets import Dataset
from training.evaluation import Mistake
from training.report.plots import confusion_matrix, curves
from training.settings import TrainSettings
from training.tracking import read_lines
from training.trainer import RunResult

MISTAKES_SHOWN: Final = 24
THUMBNAIL: Final = 96


def write_report(run_dir: Path, settings: TrainSettings, dataset: Dataset, result: RunResult) -> Path:
    """Write `run_dir`/report.html from the run's result and its JSON lines."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("report.html.j2").render(
        settings=settings.model_dump(mode="json", exclude_none=True),
        result=result,
        sizes={name: len(split.labels) for name, split in dataset.splits.items()},
        classes=_classes(dataset, result),
        mistakes=[_shown(dataset, mistake) for mistake in result.test.mistakes[:MISTAKES_SHOWN]],
        mistakes_total=int(result.test.confusion.sum() - result.test.confusion.diagonal().sum()),
        curves=curves(read_lines(run_dir / "metrics.jsonl"), read_lines(run_dir / "steps.jsonl")),
        confusion=confusion_matrix(result.test.confusion.numpy(), dataset.labels),
        versions=package_versions(("torch", "torchvision", "numpy", "pillow")),
        revision=git_revision(),
    )
    path = run_dir / "report.html"
    atomic_write(path, text)
    return path


def _classes(dataset: Dataset, result: RunResult) -> list[dict[str, Any]]:
    """Per class, the worst first: how many test images, and the share of them that was found."""
    counts = result.test.confusion.sum(1).tolist()
    rows = [
        {"label": label, "images": count, "accuracy": accuracy}
        for label, count, accuracy in zip(dataset.labels, counts, result.test.class_accuracy, strict=True)
        if not math.isnan(accuracy)
    ]
    return sorted(rows, key=lambda row: float(row["accuracy"]))


def _shown(dataset: Dataset, mistake: Mistake) -> dict[str, Any]:
    """A wrong prediction with the pixels that the model saw, as a data address."""
    pixels = dataset.test.pixels(mistake.index).transpose(1, 2, 0)
    image = Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {
        "address": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "label": dataset.labels[mistake.label],
        "predicted": dataset.labels[mistake.predicted],
        "probability": mistake.probability,
    }
