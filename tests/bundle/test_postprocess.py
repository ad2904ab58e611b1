import numpy as np
import pytest

from bundle.errors import RequestError
from bundle.postprocess import answer, parse_top_k, top_k_classes
from bundle.schemas import Prediction

LABELS = ["a", "b", "c", "d"]


def test_most_probable_first_and_equal_ones_by_class_id() -> None:
    found = top_k_classes(np.array([0.1, 0.4, 0.1, 0.4], np.float32), LABELS, 3)
    assert [entry["class_id"] for entry in found] == [1, 3, 0]
    assert [entry["label"] for entry in found] == ["b", "d", "a"]


def test_more_than_there_are_means_all() -> None:
    assert len(top_k_classes(np.full(4, 0.25, np.float32), LABELS, 100)) == 4


def test_answer_fits_its_schema() -> None:
    prediction = Prediction.model_validate(answer(np.array([0.1, 0.7, 0.1, 0.1], np.float32), "m", 3, LABELS, 2))
    assert prediction.top.label == "b"
    assert (prediction.model, prediction.version) == ("m", 3)


@pytest.mark.parametrize(("given", "expected"), [(None, 5), ("", 5), ("3", 3), (b"2", 2), (7, 7)])
def test_top_k(given: object, expected: int) -> None:
    assert parse_top_k(given) == expected


@pytest.mark.parametrize("given", ["0", "-1", "x", 0, 1.5, "1e3"])
def test_bad_top_k(given: object) -> None:
    with pytest.raises(RequestError, match="positive integer"):
        parse_top_k(given)
