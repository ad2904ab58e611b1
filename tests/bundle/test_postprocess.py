import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import RequestError
from bundle.postprocess import AnswerWriter, answer, most_probable, parse_top_k
from bundle.schemas import Prediction

LABELS = ["a", "b", "c", "d"]


@pytest.mark.parametrize("classes", [4, 1000])
def test_most_probable_first_and_equal_ones_by_class_id(classes: int) -> None:
    probabilities = np.zeros(classes, np.float32)
    probabilities[:4] = [0.1, 0.4, 0.1, 0.4]
    assert most_probable(probabilities, 3)[0] == [1, 3, 0]
    assert most_probable(probabilities, 5000)[0][:5] == [1, 3, 0, 2, *([] if classes == 4 else [4])]


def test_more_than_there_are_means_all() -> None:
    assert most_probable(np.full(4, 0.25, np.float32), 100) == ([0, 1, 2, 3], [0.25] * 4)


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), st.integers(1, 5))
def test_written_answers_are_those_of_a_json_encoder(values: list[float], top_k: int) -> None:
    labels = ["a", 'a "quoted" \\ name', "Käse\n"]
    probabilities = np.array(values, np.float32)
    written = AnswerWriter("m", 3, labels).answer(probabilities, top_k)
    content = json.loads(written)
    for entry in content["predictions"]:
        entry["probability"] = float(np.float32(entry["probability"]))
    assert content == answer(probabilities, "m", 3, labels, top_k)


def test_several_inputs_get_one_entry_each() -> None:
    probabilities = np.array([0.125, 0.5, 0.25, 0.125], np.float32)
    written = AnswerWriter("m", 3, LABELS).answers([probabilities, '{"status":422}'], 2)
    expected = answer(probabilities, "m", 3, LABELS, 2)
    predictions = expected.pop("predictions")
    assert json.loads(written) == expected | {"results": [{"predictions": predictions}, {"error": {"status": 422}}]}


def test_answer_fits_its_schema() -> None:
    prediction = Prediction.model_validate(answer(np.array([0.1, 0.7, 0.1, 0.1], np.float32), "m", 3, LABELS, 2))
    assert prediction.top.label == "b"
    assert (prediction.model, prediction.version) == ("m", 3)


@pytest.mark.parametrize(("value", "expected"), [(None, 5), ("", 5), ("3", 3), (b"2", 2), (7, 7)])
def test_top_k(value: object, expected: int) -> None:
    assert parse_top_k(value) == expected


@pytest.mark.parametrize("value", ["0", "-1", "x", 0, 1.5, "1e3"])
def test_bad_top_k(value: object) -> None:
    with pytest.raises(RequestError, match="positive integer"):
        parse_top_k(value)
