"""Checkpoint -> bundle: TorchScript and ONNX files with the same signature, golden pictures, and proof that they agree.

The bundle appears only if every file in it gives what eager PyTorch gives, on the golden pictures and on a sample of
validation pictures.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor

from serving.bundle import BUNDLES, MANIFEST, Bundle, describe_file, next_version, read_bundle, writing_bundle
from serving.manifest import Artefact, Format, Golden, ImageInput, Manifest, Origin, ProbabilitiesOutput
from serving.postprocess import Probabilities
from serving.preprocess import Pixels, preprocess
from serving.provenance import git_revision, package_versions
from training.checkpoint import load_checkpoint
from training.datasets import Split, load_dataset
from training.errors import ExportError
from training.models import Servable

OPSET: Final = 20
FP32_TOLERANCE: Final = 1e-5
GOLDEN_PICTURES: Final = 16
SAMPLE_PICTURES: Final = 256
_PACKAGES: Final = ("torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow")
BATCH: Final = 32

Say = Callable[[str], None]
Infer = Callable[[Pixels], Probabilities]
Writer = Callable[[Servable, Tensor, Path], None]
Reader = Callable[[Path], Infer]


@dataclass(frozen=True)
class Exportable:
    """Everything that becomes a bundle. `sample` is uint8 `[N, 3, H, W]`: pictures beside the golden ones to compare
    on.
    """

    servable: Servable
    model: str
    labels: tuple[str, ...]
    input: ImageInput
    origin: Origin
    golden: Sequence[tuple[str, bytes]]
    sample: npt.NDArray[np.uint8]


def export_checkpoint(
    path: Path, root: Path = BUNDLES, name: str | None = None, version: int | None = None, say: Say = print
) -> Bundle:
    """Export the checkpoint at `path` as the next version of its model (or as `version`).

    Raises:
        CheckpointError, DataError, ExportError, BundleError.
    """
    checkpoint = load_checkpoint(path)
    settings = checkpoint.settings
    say(
        f"checkpoint of epoch {checkpoint.epoch}: {settings.model} on {settings.data}, test accuracy {checkpoint.test_accuracy}"
    )
    dataset = load_dataset(settings)
    rows = np.linspace(0, len(dataset.val.labels) - 1, min(SAMPLE_PICTURES, len(dataset.val.labels))).astype(int)
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
        golden=_golden_pictures(dataset.test, checkpoint.labels),
        sample=np.stack([dataset.val.pixels(int(row)) for row in rows]),
    )
    return export_bundle(exportable, root, version, say)


def export_bundle(exportable: Exportable, root: Path = BUNDLES, version: int | None = None, say: Say = print) -> Bundle:
    """Write, compare, and only then publish a bundle.

    Raises:
        ExportError: a file does not agree with eager PyTorch.
        BundleError: the version is there already.
    """
    version = version or next_version(exportable.model, root)
    golden_pixels = np.stack([preprocess(data, exportable.input) for _, data in exportable.golden])
    pixels = np.concatenate([golden_pixels, exportable.sample])
    eager = _in_batches(lambda batch: _eager(exportable.servable, batch), pixels)

    with writing_bundle(exportable.model, version, root) as folder:
        artefacts = []
        for format_, (file_name, write, reader) in _FORMATS.items():
            say(f"writing {file_name}")
            write(exportable.servable, torch.from_numpy(golden_pixels[:2]), folder / file_name)
            got = _in_batches(reader(folder / file_name), pixels)
            artefact = _compared(folder, file_name, format_, eager, got)
            artefacts.append(artefact)
            difference = artefact.max_abs_difference
            say(f"{file_name} agrees with PyTorch on {len(pixels)} pictures: max |difference| {difference:.1e}")

        golden = _write_golden(folder, exportable.golden, eager[: len(golden_pixels)])
        manifest = Manifest(
            model=exportable.model,
            version=version,
            created=datetime.now(UTC).replace(microsecond=0),
            labels=exportable.labels,
            input=exportable.input,
            output=ProbabilitiesOutput(classes=len(exportable.labels)),
            artefacts=tuple(artefacts),
            golden=golden,
            origin=exportable.origin,
            versions=package_versions(_PACKAGES),
            git_revision=git_revision(),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return read_bundle(root / exportable.model / str(version))


# --- formats


def _write_onnx(servable: Servable, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        program = torch.onnx.export(
            servable,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["image"],
            output_names=["probabilities"],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces with the paths of this machine
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _write_torchscript(servable: Servable, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch.jit is deprecated upstream; TorchServe and Triton's pytorch backend still read it
        traced = torch.jit.freeze(torch.jit.trace(servable, example))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)


def _onnx_reader(path: Path) -> Infer:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch_axis = session.get_inputs()[0].shape[0]
    if batch_axis != "batch":
        raise ExportError(f"{path.name}: the batch axis is {batch_axis!r}, not a dynamic axis named 'batch'")

    def infer(pixels: Pixels) -> Probabilities:
        probabilities: Probabilities = session.run(["probabilities"], {"image": pixels})[0]
        return probabilities

    return infer


def _torchscript_reader(path: Path) -> Infer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return lambda pixels: _eager(module, pixels)


_FORMATS: Final[dict[Format, tuple[str, Writer, Reader]]] = {
    "onnx": ("model.onnx", _write_onnx, _onnx_reader),
    "torchscript": ("model.pt", _write_torchscript, _torchscript_reader),
}


@torch.inference_mode()
def _eager(module: Callable[[Tensor], Tensor], pixels: Pixels) -> Probabilities:
    probabilities: Probabilities = module(torch.from_numpy(pixels)).numpy()
    return probabilities


def _in_batches(infer: Infer, pixels: Pixels) -> Probabilities:
    """Batches of BATCH and, for the rest, of one: so both a batch and a lone picture are compared."""
    whole = len(pixels) - len(pixels) % BATCH
    parts = [infer(pixels[i : i + BATCH]) for i in range(0, whole, BATCH)]
    parts += [infer(pixels[i : i + 1]) for i in range(whole, len(pixels))]
    return np.concatenate(parts)


# --- proof


def _compared(folder: Path, file_name: str, format_: Format, eager: Probabilities, got: Probabilities) -> Artefact:
    """The manifest's entry for a file that agrees with eager PyTorch.

    Raises:
        ExportError: it does not.
    """
    if got.shape != eager.shape or got.dtype != eager.dtype:
        raise ExportError(f"{file_name} gives {got.dtype} {got.shape} where PyTorch gives {eager.dtype} {eager.shape}")
    difference = float(np.abs(got - eager).max())
    # A class may win by another one's margin only where both are equal within the numerical difference.
    chosen = np.take_along_axis(eager, got.argmax(1)[:, None], axis=1)[:, 0]
    agreement = float((chosen >= eager.max(1) - 2 * difference).mean())
    if not difference <= FP32_TOLERANCE or agreement < 1:
        raise ExportError(
            f"{file_name} differs from PyTorch: max |difference| {difference:.2e} (allowed {FP32_TOLERANCE:.0e}), "
            f"top-1 agreement {agreement:.1%} on {len(eager)} pictures; no bundle was written"
        )
    entry = describe_file(folder / file_name, folder)
    return Artefact(
        **entry.model_dump(),
        format=format_,
        max_abs_difference=difference,
        top1_agreement=agreement,
        compared_pictures=len(eager),
    )


def _golden_pictures(split: Split, labels: Sequence[str]) -> list[tuple[str, bytes]]:
    """Pictures of the test set, in turn of every class."""
    by_class = [list(np.flatnonzero(split.labels == class_id)) for class_id in range(len(labels))]
    rows: list[int] = []
    while len(rows) < GOLDEN_PICTURES and any(by_class):
        rows += [int(of_class.pop(0)) for of_class in by_class if of_class]
    pictures = []
    for number, row in enumerate(rows[: max(GOLDEN_PICTURES, 8)]):
        data = split.encoded(row)
        pictures.append((f"{number:02d}{_suffix(data)}", data))
    if len(pictures) < 8:
        raise ExportError(f"the test set has {len(pictures)} pictures; a bundle needs at least 8 golden ones")
    return pictures


def _suffix(data: bytes) -> str:
    """The usual file name suffix, so that the golden pictures can be looked at."""
    signatures = {
        b"\x89PNG": ".png",
        b"\xff\xd8": ".jpg",
        b"GIF8": ".gif",
        b"RIFF": ".webp",
        b"BM": ".bmp",
        b"II*\0": ".tif",
        b"MM\0*": ".tif",
    }
    return next((suffix for signature, suffix in signatures.items() if data.startswith(signature)), ".img")


def _write_golden(folder: Path, pictures: Sequence[tuple[str, bytes]], probabilities: Probabilities) -> Golden:
    golden = folder / "golden"
    golden.mkdir()
    for name, data in pictures:
        (golden / name).write_bytes(data)
    np.save(golden / "probabilities.npy", probabilities.astype(np.float32), allow_pickle=False)
    return Golden(
        pictures=tuple(describe_file(golden / name, folder) for name, _ in pictures),
        probabilities=describe_file(golden / "probabilities.npy", folder),
    )
