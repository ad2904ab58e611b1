"""Does a server give the golden answers? The gate before any timing, and the core of `trident verify`."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from serving.bundle import Bundle
from serving.clients.client import Client
from serving.errors import TridentError
from serving.postprocess import Probabilities

TOLERANCE: Final = 1e-4


@dataclass(frozen=True)
class GoldenResult:
    """How a server's answers compare. `faults` names each picture that is answered wrongly, and how; empty means
    parity.
    """

    pictures: int
    max_abs_difference: float
    faults: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Every picture is answered as the bundle says."""
        return not self.faults


def check_golden(client: Client, bundle: Bundle, tolerance: float = TOLERANCE) -> GoldenResult:
    """Send every golden picture, and compare model, version, labels, top-1 and each probability."""
    worst, faults = 0.0, []
    pictures = bundle.golden_pictures()
    for (name, data), expected in zip(pictures, bundle.golden_probabilities(), strict=True):
        try:
            difference, fault = _compare(client, bundle, data, expected, tolerance)
        except TridentError as error:
            difference, fault = float("nan"), error.message
        worst = max(worst, difference)
        if fault:
            faults.append(f"{name}: {fault}")
    return GoldenResult(len(pictures), worst, tuple(faults))


def _compare(
    client: Client, bundle: Bundle, data: bytes, expected: Probabilities, tolerance: float
) -> tuple[float, str]:
    """The largest |difference|, and what is wrong ('' if nothing)."""
    manifest = bundle.manifest
    answer = client.predict(data, top_k=len(manifest.labels))
    if (answer.model, answer.version) != (manifest.model, manifest.version):
        return float("nan"), f"answered by {answer.model}:{answer.version} instead of {bundle.name}"
    if len(answer.predictions) != len(expected):
        return float("nan"), f"{len(answer.predictions)} classes instead of {len(expected)}"
    got = np.full(len(expected), np.nan)
    for entry in answer.predictions:
        if entry.class_id >= len(expected) or entry.label != manifest.labels[entry.class_id]:
            return float("nan"), f"class {entry.class_id} is labelled {entry.label!r}"
        got[entry.class_id] = entry.probability
    difference = float(np.abs(got - expected).max())
    top = int(expected.argmax())
    tops = f"top-1 {answer.top.label!r}, golden {manifest.labels[top]!r}"
    if not difference <= tolerance:
        return difference, f"probabilities differ by {difference:.1e} (allowed {tolerance:.0e}); {tops}"
    if answer.top.class_id != top and expected[top] - expected[answer.top.class_id] > 2 * difference:
        return difference, tops
    return difference, ""
