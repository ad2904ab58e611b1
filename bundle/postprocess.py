"""Probabilities in, the answer out."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundle.errors import RequestError

DEFAULT_TOP_K: Final = 5
# All three servers read `top_k` from this header; FastAPI also from the query, which TorchServe and Triton do not pass on.
TOP_K_HEADER: Final = "x-top-k"

Probabilities = npt.NDArray[np.float32]


def top_k_classes(
    probabilities: Probabilities, labels: Sequence[str], top_k: int = DEFAULT_TOP_K
) -> list[dict[str, Any]]:
    """The most probable classes in descending order; ties by class id.

    Args:
        probabilities: float32 `[classes]`.
        labels: the class names, in the order of `probabilities`.
        top_k: how many; all if there are fewer.

    Returns:
        `[{"label", "class_id", "probability"}]`, ready for JSON (`schemas.ClassProbability` is its schema).
    """
    order = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    values = probabilities[order].tolist()
    return [{"label": labels[i], "class_id": i, "probability": p} for i, p in zip(order, values, strict=True)]


def answer(probabilities: Probabilities, model: str, version: int, labels: Sequence[str], top_k: int) -> dict[str, Any]:
    """The public answer to one input (its schema is `schemas.Prediction`)."""
    return {"model": model, "version": version, "predictions": top_k_classes(probabilities, labels, top_k)}


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
