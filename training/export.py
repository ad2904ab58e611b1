"""Checkpoint -> bundle: the model in several formats and precisions with one signature, golden images, and proof.

The bundle appears only if every fp32 file gives what eager PyTorch gives, on the golden images and on a sample of
others, and no file of a lower precision loses more accuracy than is allowed.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from bundle.manifest import Artefact, Format, ImageInput, Manifest, Origin, Precision, ProbabilitiesOutput
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels, preprocess
from bundle.provenance import git_revision, package_versions
from bundle.store import BUNDLES, MANIFEST, Bundle, describe_file, next_version, read_bundle, writing_bundle
from training.checkpoint import load_checkpoint
from training.datasets import Split, load_dataset
from training.errors import ExportError
from training.formats import SUFFIXES, Infer, read_model, run_eager, write_onnx, write_ort, write_pt2, write_torchscript
from training.golden import golden_inputs, write_golden
from training.models import Servable
from training.precisions import in_half_precision, quantise, quantise_dynamic

FP32_TOLERANCE: Final = 1e-5  # between two files on one machine
SERVED_TOLERANCE: Final = 1e-4  # between this machine and another
SAMPLE_IMAGES: Final = 256
CALIBRATION_IMAGES: Final = 256
LABELLED_IMAGES: Final = 2000
MAX_ACCURACY_DROP: Final = 0.02
BATCH: Final = 32
TIMED_ROUNDS: Final = 15
_PACKAGES: Final = ("torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow")

Say = Callable[[str], None]
Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ExportOptions:
    """What a bundle is to hold beside fp32 ONNX, TorchScript and .pt2. `max_accuracy_drop` is a fraction."""

    precisions: tuple[Precision, ...] = ()
    edge: bool = False
    max_accuracy_drop: float = MAX_ACCURACY_DROP


@dataclass(frozen=True)
class Exportable:
    """Everything that becomes a bundle. Images are uint8 `[N, 3, H, W]`: `sample` to compare on beside the golden ones,
    `calibration` of the training data for int8's ranges, `test` with its class ids to measure accuracy on, if there is
    any.
    """

    servable: Servable
    model: str
    labels: tuple[str, ...]
    input: ImageInput
    origin: Origin
    golden: Sequence[tuple[str, bytes]]
    sample: Array
    calibration: Array
    test: tuple[Array, npt.NDArray[np.int64]] | None = None


def export_checkpoint(
    path: Path,
    root: Path = BUNDLES,
    name: str | None = None,
    version: int | None = None,
    say: Say = print,
    wanted: ExportOptions | None = None,
) -> Bundle:
    """Export the checkpoint at `path` as the next version of its model (or as `version`).

    Raises:
        CheckpointError, DataError, ExportError, BundleError.
    """
    checkpoint = load_checkpoint(path)
    settings = checkpoint.settings
    say(
        f"checkpoint of epoch {checkpoint.epoch + 1}: {settings.model} on {settings.data}, "
        f"test accuracy {checkpoint.test_accuracy}"
    )
    dataset = load_dataset(settings)
    golden = golden_inputs(dataset.splits, checkpoint.labels)
    if (others := len(golden) - len(dataset.test.labels)) > 0:
        say(f"golden images: the test set has {len(golden) - others}; {others} more of validation and training")
    exportable = Exportable(
        servable=Servable(checkpoint.build()),
        model=name or settings.name,
        labels=checkpoint.labels,
        input=checkpoint.input,
        origin=Origin(
            kind="trained",
            source=path.name,
            architecture=settings.model,
            dataset=settings.data,
            dataset_fingerprint=checkpoint.fingerprint,
            seed=settings.seed,
            epochs=checkpoint.epoch + 1,
            val_accuracy=checkpoint.val_accuracy,
            test_accuracy=checkpoint.test_accuracy,
        ),
        golden=golden,
        sample=_some(dataset.val, SAMPLE_IMAGES)[0],
        calibration=_some(dataset.train, CALIBRATION_IMAGES)[0],
        test=_some(dataset.test, LABELLED_IMAGES),
    )
    return export_bundle(exportable, root, version, say, wanted)


def export_bundle(
    exportable: Exportable,
    root: Path = BUNDLES,
    version: int | None = None,
    say: Say = print,
    wanted: ExportOptions | None = None,
) -> Bundle:
    """Write, compare, and only then publish a bundle.

    Raises:
        ExportError: a file does not agree with eager PyTorch, or loses too much accuracy.
        BundleError: the version is there already.
    """
    wanted = wanted or ExportOptions()
    version = version or next_version(exportable.model, root)
    pixels = np.concatenate(
        [np.stack([preprocess(data, exportable.input) for _, data in exportable.golden]), exportable.sample]
    )
    proof = _Proof(exportable, pixels, in_batches(lambda batch: run_eager(exportable.servable, batch), pixels))
    with writing_bundle(exportable.model, version, root) as folder:
        artefacts = []
        for format_, precision, path in _written(exportable, pixels[:2], folder, wanted):
            artefacts.append(proof.compared(folder, path, format_, precision, wanted.max_accuracy_drop))
            say(described(artefacts[-1]))
        manifest = Manifest(
            model=exportable.model,
            version=version,
            created=datetime.now(UTC).replace(microsecond=0),
            labels=exportable.labels,
            input=exportable.input,
            output=ProbabilitiesOutput(classes=len(exportable.labels)),
            artefacts=timed(folder, artefacts, pixels[:1]),
            golden=write_golden(folder, exportable.golden, proof.eager[: len(exportable.golden)]),
            origin=exportable.origin,
            versions=package_versions(_PACKAGES),
            git_revision=git_revision(),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return read_bundle(root / exportable.model / str(version))


def _written(
    exportable: Exportable, example_pixels: Array, folder: Path, wanted: ExportOptions
) -> Iterable[tuple[Format, Precision, Path]]:
    """Write the files, one after another."""
    example = torch.from_numpy(example_pixels)

    def path(format_: Format, precision: Precision = "fp32") -> Path:
        return folder / f"model{'' if precision == 'fp32' else '.' + precision}{SUFFIXES[format_]}"

    onnx_files: list[Precision] = ["fp32"]
    write_onnx(exportable.servable, example, path("onnx"))
    yield "onnx", "fp32", path("onnx")
    write_torchscript(exportable.servable, example, path("torchscript"))
    yield "torchscript", "fp32", path("torchscript")
    write_pt2(exportable.servable, example, path("pt2"))
    yield "pt2", "fp32", path("pt2")
    if "fp16" in wanted.precisions:
        write_onnx(in_half_precision(exportable.servable, torch.float16), example, path("onnx", "fp16"))
        yield "onnx", "fp16", path("onnx", "fp16")
    if "bf16" in wanted.precisions:  # onnxruntime has no convolution in bf16 on CPUs, torch has
        write_torchscript(in_half_precision(exportable.servable, torch.bfloat16), example, path("torchscript", "bf16"))
        yield "torchscript", "bf16", path("torchscript", "bf16")
    if "int8" in wanted.precisions:
        quantise(path("onnx"), path("onnx", "int8"), exportable.calibration)
        onnx_files.append("int8")
        yield "onnx", "int8", path("onnx", "int8")
    if "int8-dynamic" in wanted.precisions:
        quantise_dynamic(path("onnx"), path("onnx", "int8-dynamic"))
        yield "onnx", "int8-dynamic", path("onnx", "int8-dynamic")
    for precision in onnx_files if wanted.edge else ():
        write_ort(path("onnx", precision), path("ort", precision))
        yield "ort", precision, path("ort", precision)


# --- proof


@dataclass(frozen=True)
class _Proof:
    """What eager PyTorch gives for `pixels` (the golden images first), and how a file compares."""

    exportable: Exportable
    pixels: Array
    eager: Probabilities

    def compared(
        self, folder: Path, path: Path, format_: Format, precision: Precision, max_accuracy_drop: float
    ) -> Artefact:
        """The manifest's entry for a file that is good enough.

        Raises:
            ExportError: it is not.
        """
        infer = read_model(format_, path)
        got, eager = in_batches(infer, self.pixels), self.eager
        if got.shape != eager.shape or got.dtype != eager.dtype:
            raise ExportError(
                f"{path.name} gives {got.dtype} {got.shape} where PyTorch gives {eager.dtype} {eager.shape}"
            )
        difference = float(np.abs(got - eager).max())
        agreement = float((got.argmax(1) == eager.argmax(1)).mean())
        tolerance = SERVED_TOLERANCE
        drop: float | None = 0.0
        if precision == "fp32":
            self._must_equal(path.name, got, difference)
            # A class may win by another one's margin only where both are equal within the numerical difference.
            agreement = 1.0
        else:
            golden = len(self.exportable.golden)
            drop = self._accuracy_drop(infer)
            self._must_be_accurate(path.name, drop, 1 - agreement, max_accuracy_drop)
            # Another processor rounds otherwise, where the lower precision has already lost what the golden shows.
            tolerance = round(2 * float(np.abs(got[:golden] - eager[:golden]).max()) + 0.01, 4)
        return Artefact(
            **describe_file(path, folder).model_dump(),
            format=format_,
            precision=precision,
            max_abs_difference=difference,
            top1_agreement=agreement,
            compared_inputs=len(eager),
            tolerance=tolerance,
            accuracy_drop=drop if self.exportable.test is not None else None,
            accuracy_inputs=None if self.exportable.test is None else len(self.exportable.test[1]),
        )

    def _must_equal(self, name: str, got: Probabilities, difference: float) -> None:
        chosen = np.take_along_axis(self.eager, got.argmax(1)[:, None], axis=1)[:, 0]
        agreement = float((chosen >= self.eager.max(1) - 2 * difference).mean())
        if not difference <= FP32_TOLERANCE or agreement < 1:
            raise ExportError(
                f"{name} differs from PyTorch: max |difference| {difference:.2e} (allowed {FP32_TOLERANCE:.0e}), "
                f"top-1 agreement {agreement:.1%} on {len(self.eager)} images; no bundle was written"
            )

    def _accuracy_drop(self, infer: Infer) -> float | None:
        """Eager PyTorch's accuracy minus the file's, on the labelled images."""
        if self.exportable.test is None:
            return None
        pixels, labels = self.exportable.test
        eager = in_batches(lambda batch: run_eager(self.exportable.servable, batch), pixels)
        got = in_batches(infer, pixels)
        return float((eager.argmax(1) == labels).mean() - (got.argmax(1) == labels).mean())

    def _must_be_accurate(self, name: str, drop: float | None, disagreement: float, allowed: float) -> None:
        """Without labels, the share of images whose top-1 changed stands for the drop, which it bounds."""
        what, value = ("accuracy", drop) if drop is not None else ("top-1 agreement with fp32", disagreement)
        if not value <= allowed:
            raise ExportError(
                f"{name} loses {value:.2%} of {what}, and {allowed:.2%} is allowed; no bundle was written "
                f"(--max-accuracy-drop {np.ceil(value * 1000) / 1000:g} would accept it)"
            )


def timed(folder: Path, artefacts: Sequence[Artefact], image: Array) -> tuple[Artefact, ...]:
    """The artefacts with their latency for one image in one thread: medians of interleaved rounds, so that all meet the
    same load.
    """
    models = [read_model(artefact.format, folder / artefact.file, threads=1) for artefact in artefacts]
    seconds: list[list[float]] = [[] for _ in models]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for round_ in range(TIMED_ROUNDS + 2):
            for model, times in zip(models, seconds, strict=True):
                started = time.perf_counter()
                model(image)
                if round_ >= 2:
                    times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    latencies = [median(times) * 1000 for times in seconds]
    return tuple(
        artefact.model_copy(update={"latency_ms": round(latency, 4), "speedup": round(latencies[0] / latency, 3)})
        for artefact, latency in zip(artefacts, latencies, strict=True)
    )


def described(artefact: Artefact) -> str:
    """One line about a file."""
    line = f"{artefact.file} ({artefact.bytes / 2**20:.2f} MiB): max |difference| {artefact.max_abs_difference:.1e}"
    if artefact.precision == "fp32":
        return f"{line} to PyTorch on {artefact.compared_inputs} images"
    line += f", top-1 agreement {artefact.top1_agreement:.1%}"
    if artefact.accuracy_drop is not None:
        line += f", accuracy drop {artefact.accuracy_drop:.2%} on {artefact.accuracy_inputs} test images"
    return line


def in_batches(infer: Infer, pixels: Pixels) -> Probabilities:
    """Batches of BATCH and, for the rest, of one: so both a batch and a lone image are compared."""
    whole = len(pixels) - len(pixels) % BATCH
    parts = [infer(pixels[i : i + BATCH]) for i in range(0, whole, BATCH)]
    parts += [infer(pixels[i : i + 1]) for i in range(whole, len(pixels))]
    return np.concatenate(parts)


def _some(split: Split, count: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """At most `count` images, spread evenly over the split, as serving sees them, and their class ids."""
    rows = np.linspace(0, len(split.labels) - 1, min(count, len(split.labels))).astype(int)
    return np.stack([split.pixels(int(row)) for row in rows]), split.labels[rows]
