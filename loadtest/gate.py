"""The parity gate: a target that gives other answers than the golden ones is not timed."""

from functools import partial

import httpx
from pydantic import BaseModel, ConfigDict

from bundle.store import Bundle
from loadtest.targets import AnswerCheck, Question, Target
from serving.clients.connect import connect
from serving.clients.golden import check_golden

_TIMEOUT_S = 30.0


class Lane(BaseModel):
    """One target, and how its answers compared with the golden ones before it was timed. One with faults was not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target
    golden_inputs: int
    max_abs_difference: float | None
    faults: tuple[str, ...]

    @property
    def name(self) -> str:
        """As in tables."""
        return self.target.lane

    @property
    def parity(self) -> str:
        """In a word."""
        return f"{self.golden_inputs} of {self.golden_inputs}" if not self.faults else "FAILED"


def through_gate(target: Target, bundle: Bundle | None, api_key: str | None = None) -> Lane:
    """Ask for every golden image. Our own servers must give every probability, others the first class and its own."""
    endpoint = target.endpoint
    if bundle is not None and endpoint is not None:
        with connect(
            endpoint, target.model, target.version, protocol=target.protocol, timeout_s=_TIMEOUT_S, api_key=api_key
        ) as client:
            golden = check_golden(client, bundle, target.tolerance)
        worst = golden.max_abs_difference if golden.agrees else None
        return Lane(
            target=target,
            golden_inputs=golden.images,
            max_abs_difference=worst,
            faults=tuple(f"{name}: {fault}" for name, fault in golden.faults),
        )
    wire = target.wire(bundle.manifest if bundle is not None else None)
    questions = Question.all_of(bundle, wire) if bundle is not None else [Question.null()]
    check = AnswerCheck(wire, target.tolerance)
    found = []
    with httpx.Client(base_url=target.url, timeout=_TIMEOUT_S, trust_env=False) as http:
        for number, question in enumerate(questions):
            fault = _ask(http, check, question, kept=number > 0)
            if fault:
                found.append(f"image {number}: {fault}")
    return Lane(target=target, golden_inputs=len(questions), max_abs_difference=None, faults=tuple(found))


def _ask(http: httpx.Client, check: AnswerCheck, question: Question, *, kept: bool) -> str:
    request = question.request
    post = partial(http.post, request.path, headers=dict(request.headers), content=request.body)
    try:
        try:
            response = post()
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if not kept:
                raise
            response = post()  # on a new connection: the server may have closed the kept one just then
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    return check.fault(question, response.status_code, lambda: dict(response.headers), response.content)
