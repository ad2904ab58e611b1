"""Checkpoint -> bundle: the model in several formats and precisions, with golden images.

All files have the same signature. The bundle is published only if every fp32 file agrees with eager PyTorch, and every
file of a lower precision keeps enough of its accuracy.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import torch

from bundle.manifest import Artefact, Format, ImageInput, Manifest, Origin, Precision, ProbabilitiesOutput
from bundle.preprocess import Pixels, preprocess
from bundle.provenance import git_revision, package_versions
from bundle.store import BUNDLES, MANIFEST, Bundle, next_version, read_bundle, writing_bundle
from training.checkpoint import Checkpoint, load_checkpoint
from training.comparison import ClassIds, Reference, describe_artefact, infer_in_batches
from training.datasets import Split, load_dataset
from training.errors import ExportError
from training.formats import SUFFIXES, bf16_hindrance, run_eager, write_onnx, write_ort, write_pt2, write_torchscript
from training.golden import choose_golden_inputs, write_golden
from training.latency import add_latencies
from training.models import Servable
from training.precisions import quantise, quantise_dynamic, to_half_precision
from training.settings import bundle_name

SAMPLE_IMAGES: Final = 256
CALIBRATION_IMAGES: Final = 256
LABELLED_IMAGES: Final = 2000
MAX_ACCURACY_DROP: Final = 0.02
_PACKAGES: Final = ("torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "pillow")

Log = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What to write besides fp32 ONNX, TorchScript and .pt2.

    Args:
        precisions: lower precisions.
        edge: also write onnxruntime's mobile format.
        max_accuracy_drop: largest accuracy drop of a lower precision, as a fraction.
    """

    precisions: tuple[Precision, ...] = ()
    edge: bool = False
    max_accuracy_drop: float = MAX_ACCURACY_DROP


@dataclass(frozen=True)
class Exportable:
    """A model with everything that its bundle needs. Pixels are uint8 `[N, 3, H, W]`.

    Args:
        servable: the eager model.
        model: name of the bundle.
        labels: class names.
        input: input specification.
        origin: where the weights come from.
        golden: names and encoded bytes of the golden inputs.
        sample: more images on which the files are compared with eager PyTorch.
        calibration: training images from which int8 takes the ranges of the activations.
        test: images and class ids on which accuracy is measured; None for imported weights.
    """

    servable: Servable
    model: str
    labels: tuple[str, ...]
    input: ImageInput
    origin: Origin
    golden: Sequence[tuple[str, bytes]]
    sample: Pixels
    calibration: Pixels
    test: tuple[Pixels, ClassIds] | None = None


def export_checkpoint(
    path: Path,
    root: Path = BUNDLES,
    name: str | None = None,
    version: int | None = None,
    log: Log = print,
    options: ExportOptions | None = None,
) -> Bundle:
    """Export the checkpoint at `path` as the next version of its model, or as `version`.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        DataError: its data set is not available.
        ExportError, BundleError: see `export_bundle`.
    """
    checkpoint = load_checkpoint(path)
    settings = checkpoint.settings
    if name is not None and bundle_name(name) != name:
        raise ExportError(f"--name: {name!r} cannot be a bundle's name; {bundle_name(name)!r} can")
    accuracy = "unknown" if checkpoint.test_accuracy is None else f"{checkpoint.test_accuracy:.2%}"
    log(f"checkpoint of epoch {checkpoint.epoch + 1}: {settings.model} for {settings.name}, test accuracy {accuracy}")
    dataset = load_dataset(settings)
    golden = choose_golden_inputs(dataset.splits, checkpoint.labels)
    if (others := len(golden) - len(dataset.test.labels)) > 0:
        log(f"golden images: {len(golden) - others} of the test set, {others} of the validation and training sets")
    exportable = Exportable(
        servable=Servable(checkpoint.build()),
        model=name or settings.name,
        labels=checkpoint.labels,
        input=checkpoint.input,
        origin=_origin(checkpoint, path),
        golden=golden,
        sample=_spread(dataset.val, SAMPLE_IMAGES)[0],
        calibration=_spread(dataset.train, CALIBRATION_IMAGES)[0],
        test=_spread(dataset.test, LABELLED_IMAGES),
    )
    return export_bundle(exportable, root, version, log, options)


def export_bundle(
    exportable: Exportable,
    root: Path = BUNDLES,
    version: int | None = None,
    log: Log = print,
    options: ExportOptions | None = None,
) -> Bundle:
    """Write the files, compare them with eager PyTorch, and publish the bundle.

    Raises:
        ExportError: a file does not agree with eager PyTorch, or loses too much accuracy.
        BundleError: the version already exists.
    """
    options = options or ExportOptions()
    version = version or next_version(exportable.model, root)
    reference = _reference(exportable)
    with writing_bundle(exportable.model, version, root) as folder:
        artefacts = []
        for format_, precision, path in _write_files(exportable, reference.pixels[:2], folder, options, log):
            artefacts.append(reference.check(path, folder, format_, precision, options.max_accuracy_drop))
            log(describe_artefact(artefacts[-1]))
        timed = add_latencies(folder, artefacts, reference.pixels[:1])
        manifest = _manifest(exportable, version, timed, reference, folder)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return read_bundle(root / exportable.model / str(version))


def _origin(checkpoint: Checkpoint, path: Path) -> Origin:
    settings = checkpoint.settings
    return Origin(
        kind="trained",
        source=path.name,
        architecture=settings.model,
        dataset=settings.data,
        dataset_fingerprint=checkpoint.fingerprint,
        seed=settings.seed,
        epochs=checkpoint.epoch + 1,
        val_accuracy=checkpoint.val_accuracy,
        test_accuracy=checkpoint.test_accuracy,
    )


def _reference(exportable: Exportable) -> Reference:
    """Run eager PyTorch on the golden inputs and the sample."""
    golden = np.stack([preprocess(data, exportable.input) for _, data in exportable.golden])
    pixels = np.concatenate([golden, exportable.sample])
    probabilities = infer_in_batches(lambda batch: run_eager(exportable.servable, batch), pixels)
    return Reference(exportable.servable, pixels, len(golden), probabilities, exportable.test)


def _write_files(
    exportable: Exportable, example_pixels: Pixels, folder: Path, options: ExportOptions, log: Log
) -> Iterator[tuple[Format, Precision, Path]]:
    """Write one file after another; yield each before the next is written.

    OpenVINO computes the fp32 file in bf16, so that file is yielded twice.
    """
    servable, example = exportable.servable, torch.from_numpy(example_pixels)

    def path(format_: Format, precision: Precision = "fp32") -> Path:
        return folder / f"model{'' if precision == 'fp32' else '.' + precision}{SUFFIXES[format_]}"

    write_onnx(servable, example, path("onnx"))
    yield "onnx", "fp32", path("onnx")
    write_torchscript(servable, example, path("torchscript"))
    yield "torchscript", "fp32", path("torchscript")
    write_pt2(servable, example, path("pt2"))
    yield "pt2", "fp32", path("pt2")
    if "fp16" in options.precisions:
        write_onnx(to_half_precision(servable, torch.float16), example, path("onnx", "fp16"))
        yield "onnx", "fp16", path("onnx", "fp16")
    if "bf16" in options.precisions:  # onnxruntime has no bf16 convolution for CPUs; torch has one
        write_torchscript(to_half_precision(servable, torch.bfloat16), example, path("torchscript", "bf16"))
        yield "torchscript", "bf16", path("torchscript", "bf16")
        if (hindrance := bf16_hindrance()) is None:
            yield "onnx", "bf16", path("onnx")
        else:
            log(f"no bf16 by OpenVINO in this bundle: {hindrance}")
    if "int8" in options.precisions:
        quantise(path("onnx"), path("onnx", "int8"), exportable.calibration)
        yield "onnx", "int8", path("onnx", "int8")
    if "int8-dynamic" in options.precisions:
        quantise_dynamic(path("onnx"), path("onnx", "int8-dynamic"))
        yield "onnx", "int8-dynamic", path("onnx", "int8-dynamic")
    if options.edge:
        write_ort(path("onnx"), path("ort"))
        yield "ort", "fp32", path("ort")
    if options.edge and "int8" in options.precisions:
        write_ort(path("onnx", "int8"), path("ort", "int8"))
        yield "ort", "int8", path("ort", "int8")


def _manifest(
    exportable: Exportable, version: int, artefacts: tuple[Artefact, ...], reference: Reference, folder: Path
) -> Manifest:
    """Write the golden examples; return the manifest."""
    return Manifest(
        model=exportable.model,
        version=version,
        created=datetime.now(UTC).replace(microsecond=0),
        labels=exportable.labels,
        input=exportable.input,
        output=ProbabilitiesOutput(classes=len(exportable.labels)),
        artefacts=artefacts,
        golden=write_golden(folder, exportable.golden, reference.golden_probabilities),
        origin=exportable.origin,
        versions=package_versions(_PACKAGES),
        git_revision=git_revision(),
    )


def _spread(split: Split, count: int) -> tuple[Pixels, ClassIds]:
    """Return at most `count` preprocessed images, spread evenly over the split, and their class ids."""
    rows = np.linspace(0, len(split.labels) - 1, min(count, len(split.labels))).astype(int)
    return np.stack([split.pixels(int(row)) for row in rows]), split.labels[rows]
