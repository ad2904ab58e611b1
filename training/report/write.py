"""Folder of a run -> report.html, a self-contained file."""

import base64
import io
from pathlib import Path
from typing import Any, Final

import jinja2
from PIL import Image

from bundle.atomic_file import atomic_write
from bundle.provenance import git_revision, package_versions
from training.datasets import Dataset
from training.evaluation import Mistake
from training.progress import RunResult
from training.report.plots import confusion_matrix, curves
from training.settings import TrainSettings
from training.tracking import read_lines

MAX_MISTAKES: Final = 24
THUMBNAIL_SIZE: Final = 96


def write_report(run_dir: Path, settings: TrainSettings, dataset: Dataset, result: RunResult) -> Path:
    """Write `run_dir`/report.html from the result and the JSON lines of the run; return its path."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("report.html.j2").render(
        settings=settings.model_dump(mode="json", exclude_none=True),
        result=result,
        sizes={name: len(split.labels) for name, split in dataset.splits.items()},
        classes=_class_rows(dataset, result),
        mistakes=[_mistake_row(dataset, mistake) for mistake in result.test.mistakes[:MAX_MISTAKES]],
        mistakes_total=int(result.test.confusion.sum() - result.test.confusion.diagonal().sum()),
        curves=curves(read_lines(run_dir / "metrics.jsonl"), read_lines(run_dir / "steps.jsonl")),
        confusion=confusion_matrix(result.test.confusion.numpy(), dataset.labels),
        versions=package_versions(("torch", "torchvision", "numpy", "pillow")),
        revision=git_revision(),
    )
    path = run_dir / "report.html"
    atomic_write(path, text)
    return path


def _class_rows(dataset: Dataset, result: RunResult) -> list[dict[str, Any]]:
    """Return test images and recall of every class with test images, lowest recall first."""
    counts = result.test.confusion.sum(1).tolist()
    rows: list[dict[str, Any]] = [
        {"label": label, "images": count, "accuracy": accuracy}
        for label, count, accuracy in zip(dataset.labels, counts, result.test.class_accuracy, strict=True)
        if accuracy is not None
    ]
    return sorted(rows, key=lambda row: row["accuracy"])


def _mistake_row(dataset: Dataset, mistake: Mistake) -> dict[str, Any]:
    """Return a wrong prediction, with the preprocessed image as a data URL."""
    pixels = dataset.test.pixels(mistake.index).transpose(1, 2, 0)
    image = Image.fromarray(pixels).resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {
        "image_url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "label": dataset.labels[mistake.label],
        "predicted": dataset.labels[mistake.predicted],
        "probability": mistake.probability,
    }
