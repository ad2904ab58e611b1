"""Probabilities in, the answer out."""

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundle.errors import RequestError

DEFAULT_TOP_K: Final = 5
# All three servers read `top_k` from this header; FastAPI also from the query, which TorchServe and Triton do not pass on.
TOP_K_HEADER: Final = "x-top-k"

_FEW_CLASSES: Final = 32

Probabilities = npt.NDArray[np.float32]


def most_probable(probabilities: Probabilities, top_k: int) -> tuple[list[int], list[float]]:
    """The ids and probabilities of the most probable classes in descending order; ties by class id.

    Args:
        probabilities: float32 `[classes]`.
        top_k: how many; all if there are fewer.
    """
    if len(probabilities) <= _FEW_CLASSES:  # a Python list is faster than numpy's calls
        values = probabilities.tolist()
        ids = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:top_k]
        return ids, [values[i] for i in ids]
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return order.tolist(), probabilities[order].tolist()


def answer(probabilities: Probabilities, model: str, version: int, labels: Sequence[str], top_k: int) -> dict[str, Any]:
    """The public answer to one input (its schema is `schemas.Prediction`).

    Args:
        probabilities: float32 `[classes]`.
        labels: the class names, in the order of `probabilities`.
        top_k: how many classes; all if there are fewer.
    """
    ids, values = most_probable(probabilities, top_k)
    predictions = [
        {"label": labels[i], "class_id": i, "probability": value} for i, value in zip(ids, values, strict=True)
    ]
    return {"model": model, "version": version, "predictions": predictions}


class AnswerWriter:
    """Writes the answers of one model version as JSON. What does not change is encoded once.

    A general JSON encoder needs a list of dictionaries first, which takes longer than a small model.
    """

    def __init__(self, model: str, version: int, labels: Sequence[str]) -> None:
        self._head = f'{{"model":{json.dumps(model)},"version":{version},'
        self._classes = [
            f'{{"label":{json.dumps(label, ensure_ascii=False)},"class_id":{number},"probability":'
            for number, label in enumerate(labels)
        ]

    def answer(self, probabilities: Probabilities, top_k: int) -> bytes:
        """The answer to one input (`schemas.Prediction`). `probabilities`: float32 `[classes]`."""
        return f"{self._head}{self._predictions(probabilities, top_k)}}}".encode()

    def answers(self, results: Sequence[Probabilities | str], top_k: int) -> bytes:
        """The answer to several inputs (`schemas.Predictions`): probabilities, or the JSON of an error."""
        entries = [
            f'{{"error":{result}}}' if isinstance(result, str) else f"{{{self._predictions(result, top_k)}}}"
            for result in results
        ]
        return f'{self._head}"results":[{",".join(entries)}]}}'.encode()

    def _predictions(self, probabilities: Probabilities, top_k: int) -> str:
        classes = self._classes
        ids, values = most_probable(probabilities, top_k)
        # 9 digits distinguish all float32 numbers.
        entries = [f"{classes[i]}{value:.9g}}}" for i, value in zip(ids, values, strict=True)]
        return f'"predictions":[{",".join(entries)}]'


def parse_top_k(value: object) -> int:
    """The `top_k` of a request: a positive integer, or empty for the default.

    Raises:
        RequestError: it is something else.
    """
    if value is None or value == "":
        return DEFAULT_TOP_K
    try:
        top_k = int(value) if isinstance(value, int | str | bytes | bytearray) else 0
    except ValueError:
        top_k = 0
    if top_k < 1:
        raise RequestError(f"top_k must be a positive integer, not {str(value)[:20]!r}")
    return top_k
