"""Is an answer right? The one definition, for readiness, verify, rollout and load test."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bundle.postprocess import Probabilities
from bundle.schemas import Prediction

FaultKind = Literal["no-answer", "version", "labels", "probabilities", "server"]


@dataclass(frozen=True)
class Fault:
    """Why an answer is not the golden answer.

    `no-answer`: the request failed. `server`: part of the server is down, whatever it answers.
    """

    kind: FaultKind
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Expected:
    """The right answer to one input.

    Args:
        probabilities: float32 `[classes]`, as eager PyTorch gave them.
        top_k: how many classes were asked for; None: all.
        labels: the model's labels; None: not compared (a third-party server may have others).
        model: `model:version` that must have answered; None: not compared.
    """

    probabilities: Probabilities
    top_k: int | None = None
    labels: Sequence[str] | None = None
    model: str | None = None


def compare(answer: Prediction, expected: Expected, tolerance: float) -> Fault | None:
    """The first thing that is wrong with an answer, or None.

    An answer is right if the expected model and version gave it, if it has as many classes as were asked for, and if
    for each class the label is the model's and the probability differs by at most `tolerance`. The classes are the most
    probable ones in descending order, up to the tolerance.
    """
    return next(all_faults(answer, expected, tolerance), None)


def all_faults(answer: Prediction, expected: Expected, tolerance: float) -> Iterator[Fault]:
    """All that is wrong with an answer, as `compare` defines it: at most one fault of each kind."""
    name = f"{answer.model}:{answer.version}"
    if expected.model is not None and name != expected.model:
        yield Fault("version", f"answered by {name} instead of {expected.model}")
    yield from filter(None, (_labels_fault(answer, expected), _probabilities_fault(answer, expected, tolerance)))


def compare_probabilities(
    probabilities: npt.NDArray[np.float32], expected: Probabilities, tolerance: float
) -> Fault | None:
    """As `compare`, for what a model gives: float32 `[classes]` each."""
    difference = float(np.abs(probabilities - expected).max())
    if not difference <= tolerance:
        return Fault("probabilities", f"probabilities differ by {difference:.1e} (allowed {tolerance:.0e})")
    return None


def max_abs_difference(answer: Prediction, expected: Expected) -> float:
    """The largest |difference| of a probability, over the classes in the answer; NaN if one is not a number."""
    differences = [
        abs(entry.probability - float(expected.probabilities[entry.class_id]))
        for entry in answer.predictions
        if entry.class_id < len(expected.probabilities)
    ]
    return float(np.max(differences, initial=0.0))


def _labels_fault(answer: Prediction, expected: Expected) -> Fault | None:
    labels, classes = expected.labels, len(expected.probabilities)
    for entry in answer.predictions:
        if entry.class_id >= classes or (labels is not None and entry.label != labels[entry.class_id]):
            return Fault("labels", f"class {entry.class_id} is labelled {entry.label!r}")
    return None


def _probabilities_fault(answer: Prediction, expected: Expected, tolerance: float) -> Fault | None:
    classes = len(expected.probabilities)
    wanted = classes if expected.top_k is None else min(expected.top_k, classes)
    ids = [entry.class_id for entry in answer.predictions if entry.class_id < classes]
    if len(answer.predictions) != wanted or len(set(ids)) != wanted:
        twice = ", some of them twice," if len(set(ids)) < len(ids) else ""
        return Fault("probabilities", f"{len(answer.predictions)} classes{twice} instead of {wanted}")
    difference = max_abs_difference(answer, expected)
    if not difference <= tolerance:
        tops = f"top-1 class {answer.top.class_id}, golden {int(expected.probabilities.argmax())}"
        return Fault("probabilities", f"probabilities differ by {difference:.1e} (allowed {tolerance:.0e}); {tops}")
    # The k-th class of the answer may change places only with classes that are as probable, up to the tolerance.
    shown, golden = expected.probabilities[ids], np.sort(expected.probabilities)[::-1][:wanted]
    if float(np.abs(shown - golden).max()) > 2 * tolerance:
        return Fault("probabilities", f"classes {ids[:5]} are not the {wanted} most probable ones in descending order")
    return None
