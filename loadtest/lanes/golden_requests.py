"""Requests whose golden answers are known, and the check of every answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from bundle.errors import TridentError
from bundle.golden import Expected, Fault, compare
from bundle.postprocess import DEFAULT_TOP_K
from bundle.schemas import Prediction
from bundle.store import Bundle
from loadtest.lanes.lane import Lane
from loadtest.lanes.wires import ImageWire
from serving.clients.http_wire import HttpRequest, Wire

NULL_ANSWER: Final = b'{"model":"null","version":1,"predictions":[{"label":"0","class_id":0,"probability":1.0}]}'
NULL_IMAGE: Final = bytes(512)
_MOST_KNOWN: Final = 10_000


@dataclass(frozen=True)
class GoldenRequest:
    """A golden image as a ready request. `name`: of the image's file."""

    name: str
    request: HttpRequest
    expected: Expected


def golden_requests(lane: Lane, bundle: Bundle | None) -> list[GoldenRequest]:
    """A bundle's golden images as requests to a lane, with the default number of classes. None: the null target's request.

    The model's name and the labels are not compared if a third party's server answers.
    """
    if bundle is None:
        request = ImageWire("/predict").request(NULL_IMAGE)
        return [GoldenRequest("null", request, Expected(np.array([1, 0], np.float32), top_k=1))]
    wire = lane.wire(bundle.manifest)
    return [
        GoldenRequest(
            example.name,
            wire.request(example.data),
            replace(example.expected, labels=None, model=None) if lane.third_party else example.expected,
        )
        for example in bundle.golden_examples(DEFAULT_TOP_K)
    ]


class AnswerCheck:
    """Compares every answer with the golden answer. Answers that repeat are recognised by their bytes."""

    def __init__(self, wire: Wire, tolerance: float) -> None:
        self._wire = wire
        self._tolerance = tolerance
        self._known: set[tuple[int, bytes]] = set()

    def fault(
        self, golden: GoldenRequest, status: int, headers: Callable[[], Mapping[str, str]], body: bytes
    ) -> Fault | None:
        """What is wrong with a response; None if it is the golden answer.

        Args:
            headers: returns the headers with lower-case names; called only if they are needed.
        """
        known = (id(golden), body)
        if status == 200 and known in self._known:
            return None
        try:
            answer = self._wire.prediction(status, headers(), body)
        except TridentError as error:
            return Fault("no-answer", error.message)
        fault = compare(answer, _asked_for(golden.expected, answer), self._tolerance)
        if fault is None and len(self._known) < _MOST_KNOWN:
            self._known.add(known)
        return fault


def _asked_for(expected: Expected, answer: Prediction) -> Expected:
    """A third party's server (whose model's name is not compared) chooses how many classes it returns, at least one."""
    return expected if expected.model is not None else replace(expected, top_k=max(1, len(answer.predictions)))
