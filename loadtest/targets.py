"""Who is measured with what: a server, a model, and pictures whose right answers are known."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from serving.bundle import Bundle
from serving.clients.golden import TOLERANCE
from serving.clients.wire import WIRES, HttpRequest, Wire
from serving.errors import TridentError
from serving.server_plan import Endpoint


class Target(BaseModel):
    """One lane: a server with one model behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: Endpoint
    model: str
    version: int
    runtime: str

    @property
    def lane(self) -> str:
        """Its name in tables: `server`, for as long as lanes differ in nothing else."""
        return self.endpoint.server

    @property
    def wire(self) -> Wire:
        """How to ask it."""
        return WIRES[self.endpoint.server](self.model, self.version)


@dataclass(frozen=True)
class Question:
    """A picture as a ready request, with its golden answer."""

    request: HttpRequest
    label: str
    class_id: int
    probability: float

    @classmethod
    def all_of(cls, bundle: Bundle, wire: Wire) -> list[Self]:
        """The golden pictures of a bundle, as questions to one server."""
        questions = []
        for (_, data), row in zip(bundle.golden_pictures(), bundle.golden_probabilities(), strict=True):
            top = int(np.argmax(row))
            questions.append(cls(wire.request(data), bundle.manifest.labels[top], top, float(row[top])))
        return questions


class AnswerCheck:
    """Compares every answer with the golden one. Servers repeat themselves, so most are recognised by their bytes."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._known: set[tuple[int, bytes]] = set()

    def fault(self, question: Question, status: int, headers: dict[str, str], body: bytes) -> str:
        """'' if the response is a right answer, else what is wrong. Header names are lower case."""
        known = (id(question), body)
        if status == 200 and known in self._known:
            return ""
        try:
            top = self._wire.prediction(status, headers, body).top
        except TridentError as error:
            return error.message
        if top.class_id != question.class_id or abs(top.probability - question.probability) > TOLERANCE:
            return (
                f"wrong answer: {top.label} {top.probability:.4f}, golden {question.label} {question.probability:.4f}"
            )
        if len(self._known) < 10_000:
            self._known.add(known)
        return ""
