"""Does a server give the golden answers? The gate before any timing, and the core of `trident verify`."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from bundle.errors import TridentError
from bundle.postprocess import Probabilities
from bundle.schemas import Prediction
from bundle.store import Bundle
from serving.clients.client import Client

TOLERANCE: Final = 1e-4


@dataclass(frozen=True)
class GoldenResult:
    """How a server's answers compare. `faults` names each image that is answered wrongly, and how; empty means
    parity.
    """

    images: int
    max_abs_difference: float
    faults: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Every image is answered as the bundle says."""
        return not self.faults


@dataclass(frozen=True)
class Comparison:
    """One answer against what is expected: what is wrong with its version, its labels, its probabilities ('' if
    nothing), and the largest |difference|.
    """

    version: str
    labels: str
    probabilities: str
    max_abs_difference: float

    @property
    def fault(self) -> str:
        """The first thing that is wrong, or ''."""
        return self.version or self.labels or self.probabilities


def check_golden(client: Client, bundle: Bundle, tolerance: float = TOLERANCE) -> GoldenResult:
    """Send every golden image, and compare model, version, labels, top-1 and each probability."""
    worst, faults = 0.0, []
    images = bundle.golden_inputs()
    for (name, data), expected in zip(images, bundle.golden_probabilities(), strict=True):
        try:
            answer = client.predict(data, top_k=len(bundle.manifest.labels))
        except TridentError as error:
            difference, fault = float("nan"), error.message
        else:
            compared = compare(answer, bundle, expected, tolerance)
            difference, fault = compared.max_abs_difference, compared.fault
        worst = max(worst, difference)
        if fault:
            faults.append(f"{name}: {fault}")
    return GoldenResult(len(images), worst, tuple(faults))


def compare(answer: Prediction, bundle: Bundle, expected: Probabilities, tolerance: float = TOLERANCE) -> Comparison:
    """Compare an answer with all classes of a bundle's model to float32 `[classes]`."""
    manifest = bundle.manifest
    version = labels = probabilities = ""
    if (answer.model, answer.version) != (manifest.model, manifest.version):
        version = f"answered by {answer.model}:{answer.version} instead of {bundle.name}"
    got = np.full(len(expected), np.nan)
    for entry in answer.predictions:
        if entry.class_id < len(expected):
            got[entry.class_id] = entry.probability
        if entry.class_id >= len(expected) or entry.label != manifest.labels[entry.class_id]:
            labels = labels or f"class {entry.class_id} is labelled {entry.label!r}"
    difference = float(np.abs(got - expected).max())
    if len(answer.predictions) != len(expected):
        probabilities = f"{len(answer.predictions)} classes instead of {len(expected)}"
    elif not difference <= tolerance:
        tops = f"top-1 class {answer.top.class_id}, golden {int(expected.argmax())}"
        probabilities = f"probabilities differ by {difference:.1e} (allowed {tolerance:.0e}); {tops}"
    return Comparison(version, labels, probabilities, difference)
