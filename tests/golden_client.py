"""A client without a server, and the answers that it may give."""

from collections.abc import Callable

import numpy as np

from serving.bundle import Bundle
from serving.clients.client import Client, Reply
from serving.postprocess import DEFAULT_TOP_K, answer
from serving.schemas import Prediction


class MadeUpClient(Client):
    """Answers what the function says."""

    def __init__(self, respond: Callable[[bytes, int | None], Prediction]) -> None:
        self._respond = respond

    def close(self) -> None:
        pass

    def ask(self, picture: bytes, top_k: int | None = None) -> Reply:
        return Reply(self._respond(picture, top_k), 0.0, {})


def golden_answer(bundle: Bundle, picture: bytes, top_k: int | None = None, *, wrong: bool = False) -> Prediction:
    """What the bundle says of one of its golden pictures, or each class with the next one's probability."""
    pictures = [data for _, data in bundle.golden_pictures()]
    row = bundle.golden_probabilities()[pictures.index(picture)]
    manifest = bundle.manifest
    shown = np.roll(row, 1) if wrong else row
    return Prediction.model_validate(
        answer(shown, manifest.model, manifest.version, manifest.labels, top_k or DEFAULT_TOP_K)
    )
