"""The definition of a right answer."""

import numpy as np
import pytest

from bundle.golden import Expected, compare, compare_probabilities, max_abs_difference
from bundle.postprocess import answer
from bundle.schemas import Prediction

LABELS = ("a", "b", "c", "d")
ROW = np.array([0.1, 0.6, 0.05, 0.25], np.float32)
TOLERANCE = 1e-3


def predicted(row: np.ndarray = ROW, top_k: int = 4, version: int = 1) -> Prediction:
    return Prediction.model_validate(answer(row, "m", version, LABELS, top_k))


def with_classes(*ids: int) -> Prediction:
    classes = [{"label": LABELS[i], "class_id": i, "probability": float(ROW[i])} for i in ids]
    return Prediction.model_validate({"model": "m", "version": 1, "predictions": classes})


def expected(top_k: int | None = None) -> Expected:
    return Expected(ROW, top_k, LABELS, "m:1")


@pytest.mark.parametrize("top_k", [None, 1, 2, 4, 9])
def test_the_golden_answer_is_right(top_k: int | None) -> None:
    assert compare(predicted(top_k=top_k or 4), expected(top_k), TOLERANCE) is None


def test_a_difference_within_the_tolerance_is_right() -> None:
    near = (ROW + np.array([4e-4, -4e-4, 0, 0], np.float32)).astype(np.float32)
    assert compare(predicted(near), expected(), TOLERANCE) is None
    assert max_abs_difference(predicted(near), expected()) == pytest.approx(4e-4, rel=1e-2)


def test_classes_that_are_equally_probable_may_change_places() -> None:
    tied = np.array([0.3, 0.3001, 0.2, 0.1999], np.float32)
    swapped = np.array([0.3001, 0.3, 0.1999, 0.2], np.float32)
    assert compare(predicted(swapped, 2), Expected(tied, 2, LABELS, "m:1"), TOLERANCE) is None


@pytest.mark.parametrize(
    ("wrong", "top_k", "kind", "message"),
    [
        (predicted(version=2), None, "version", "answered by m:2 instead of m:1"),
        (predicted(np.roll(ROW, 1)), None, "probabilities", "probabilities differ by"),
        (predicted(top_k=3), None, "probabilities", "3 classes instead of 4"),
        (with_classes(1, 3), 3, "probabilities", "2 classes instead of 3"),
        (with_classes(1, 3, 3), 3, "probabilities", "some of them twice"),
        (with_classes(1, 3, 0, 0), 3, "probabilities", "4 classes, some of them twice, instead of 3"),
        (with_classes(3, 1), 2, "probabilities", "not the 2 most probable"),
        (with_classes(1, 0), 2, "probabilities", "not the 2 most probable"),
    ],
)
def test_what_is_wrong_is_named(wrong: Prediction, top_k: int | None, kind: str, message: str) -> None:
    fault = compare(wrong, expected(top_k), TOLERANCE)
    assert fault is not None
    assert fault.kind == kind
    assert message in fault.message


def test_labels_and_unknown_classes() -> None:
    swapped = Prediction.model_validate(answer(ROW, "m", 1, ("b", "a", "c", "d"), 4))
    fault = compare(swapped, expected(), TOLERANCE)
    assert fault is not None
    assert fault.kind == "labels"
    assert compare(swapped, Expected(ROW), TOLERANCE) is None  # a third-party server's labels and model are its own
    unknown = {"model": "m", "version": 1, "predictions": [{"label": "e", "class_id": 4, "probability": 1.0}]}
    assert compare(Prediction.model_validate(unknown), expected(1), TOLERANCE) is not None


def test_rows_of_a_model() -> None:
    assert compare_probabilities(ROW, ROW, TOLERANCE) is None
    assert compare_probabilities(ROW * np.nan, ROW, TOLERANCE) is not None
