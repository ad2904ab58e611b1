"""Comparison of an exported file with eager PyTorch."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundle.golden import compare_probabilities
from bundle.manifest import Artefact, Format, Precision
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels
from bundle.store import describe_file
from training.errors import ExportError
from training.formats import Infer, read_model, run_eager
from training.models import Servable

FP32_TOLERANCE: Final = 1e-5  # between two files on one machine
SERVED_TOLERANCE: Final = 1e-4  # between the exporting machine and a serving machine
BATCH: Final = 32
ONE_BY_ONE: Final = 8

ClassIds = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reference:
    """Eager PyTorch's probabilities, with which every file is compared.

    Args:
        servable: the eager model.
        pixels: uint8 `[N, 3, H, W]`, the golden inputs first.
        golden_count: number of golden inputs.
        probabilities: float32 `[N, classes]`, of `pixels`.
        test: labelled images, pixels and class ids, for the accuracy; None for imported weights.
    """

    servable: Servable
    pixels: Pixels
    golden_count: int
    probabilities: Probabilities
    test: tuple[Pixels, ClassIds] | None

    @property
    def golden_probabilities(self) -> Probabilities:
        """float32 `[golden inputs, classes]`."""
        return self.probabilities[: self.golden_count]

    def check(
        self, path: Path, folder: Path, format_: Format, precision: Precision, max_accuracy_drop: float
    ) -> Artefact:
        """Compare the file at `path` with eager PyTorch; return its manifest entry.

        Raises:
            ExportError: an fp32 file differs from eager PyTorch, or another precision loses too much accuracy.
        """
        infer = read_model(format_, path, precision)
        probabilities, eager = infer_in_batches(infer, self.pixels), self.probabilities
        if probabilities.shape != eager.shape or probabilities.dtype != eager.dtype:
            raise ExportError(
                f"{path.name} returns {probabilities.dtype} {probabilities.shape}, PyTorch {eager.dtype} {eager.shape}"
            )
        if precision == "fp32":
            measured = self._check_fp32(path.name, probabilities)
        else:
            name = path.name if precision in path.name else f"{path.name} in {precision}"
            measured = self._check_lower_precision(name, infer, probabilities, max_accuracy_drop)
        return Artefact(
            **describe_file(path, folder).model_dump(),
            format=format_,
            precision=precision,
            max_abs_difference=float(np.abs(probabilities - eager).max()),
            compared_inputs=len(eager),
            accuracy_inputs=None if self.test is None else len(self.test[1]),
            **measured,
        )

    def _check_fp32(self, name: str, probabilities: Probabilities) -> dict[str, Any]:
        """Require equal probabilities. The top-1 classes are then equal too, except for ties within the tolerance."""
        fault = compare_probabilities(probabilities, self.probabilities, FP32_TOLERANCE)
        if fault is not None:
            raise ExportError(
                f"{name} differs from PyTorch on {len(self.probabilities)} images: {fault}; no bundle was written"
            )
        drop = None if self.test is None else 0.0
        return {"top1_agreement": 1.0, "accuracy_drop": drop, "tolerance": SERVED_TOLERANCE}

    def _check_lower_precision(
        self, name: str, infer: Infer, probabilities: Probabilities, max_accuracy_drop: float
    ) -> dict[str, Any]:
        """Require that the accuracy drops by at most `max_accuracy_drop`.

        Without labelled images, the share of changed top-1 classes is used, which is an upper bound of the drop.
        """
        agreement = float((probabilities.argmax(1) == self.probabilities.argmax(1)).mean())
        drop = self._accuracy_drop(infer)
        what, lost = ("accuracy", drop) if drop is not None else ("top-1 agreement with fp32", 1 - agreement)
        if not lost <= max_accuracy_drop:
            accepted = np.ceil(lost * 1000) / 1000
            raise ExportError(
                f"{name} loses {lost:.2%} of {what}, and {max_accuracy_drop:.2%} is allowed; no bundle was written "
                f"(--max-accuracy-drop {accepted:g} would accept it)"
            )
        # The margin covers other processors, which round differently.
        golden_difference = np.abs(probabilities[: self.golden_count] - self.golden_probabilities).max()
        tolerance = round(2 * float(golden_difference) + 0.01, 4)
        return {"top1_agreement": agreement, "accuracy_drop": drop, "tolerance": tolerance}

    def _accuracy_drop(self, infer: Infer) -> float | None:
        """Return eager PyTorch's accuracy minus the file's; None without labelled images."""
        if self.test is None:
            return None
        pixels, labels = self.test
        eager = infer_in_batches(lambda batch: run_eager(self.servable, batch), pixels)
        probabilities = infer_in_batches(infer, pixels)
        return float((eager.argmax(1) == labels).mean() - (probabilities.argmax(1) == labels).mean())


def infer_in_batches(infer: Infer, pixels: Pixels) -> Probabilities:
    """Run `infer` on a few images one by one and on the others in batches, so that both sizes are covered."""
    cuts = [*range(min(ONE_BY_ONE, len(pixels))), *range(ONE_BY_ONE, len(pixels), BATCH), len(pixels)]
    return np.concatenate([infer(pixels[start:end]) for start, end in pairwise(cuts)])


def describe_artefact(artefact: Artefact) -> str:
    """Describe a file's size and comparison in one line."""
    line = f"{artefact.label} ({artefact.bytes / 2**20:.2f} MiB): max |difference| {artefact.max_abs_difference:.1e}"
    if artefact.precision == "fp32":
        return f"{line} to PyTorch on {artefact.compared_inputs} images"
    line += f", top-1 agreement {artefact.top1_agreement:.1%}"
    if artefact.accuracy_drop is not None:
        line += f", accuracy drop {artefact.accuracy_drop:.2%} on {artefact.accuracy_inputs} test images"
    return line
