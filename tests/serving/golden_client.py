"""A client without a server, and the answers that it may give."""

from collections.abc import Callable

import numpy as np

from bundle.postprocess import DEFAULT_TOP_K, answer
from bundle.schemas import Prediction
from bundle.store import Bundle
from serving.clients.client import Client, TimedPrediction


class FakeClient(Client):
    """Answers what the function says."""

    def __init__(self, respond: Callable[[bytes, int | None], Prediction]) -> None:
        self._respond = respond

    def close(self) -> None:
        pass

    def ask(self, image: bytes, top_k: int | None = None) -> TimedPrediction:
        return TimedPrediction(self._respond(image, top_k), 0.0, {})


def golden_answer(bundle: Bundle, image: bytes, top_k: int | None = None, *, wrong: bool = False) -> Prediction:
    """What the bundle says of one of its golden images, or each class with the next one's probability."""
    images = [data for _, data in bundle.golden_inputs()]
    row = bundle.golden_probabilities()[images.index(image)]
    manifest = bundle.manifest
    shown = np.roll(row, 1) if wrong else row
    return Prediction.model_validate(
        answer(shown, manifest.model, manifest.version, manifest.labels, top_k or DEFAULT_TOP_K)
    )
