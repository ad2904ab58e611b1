"""The parity gate: a lane is timed only if its answers are the golden answers."""

from functools import partial

import httpx
from pydantic import BaseModel, ConfigDict

from bundle.errors import TridentError
from bundle.golden import Fault, compare, max_abs_difference
from bundle.store import Bundle
from loadtest.lanes.golden_requests import AnswerCheck, GoldenRequest, golden_requests
from loadtest.lanes.lane import Lane
from serving.clients.client import Client
from serving.clients.connect import connect

_TIMEOUT_S = 30.0


class LaneParity(BaseModel):
    """A lane, and how its answers compare with the golden answers. A lane with faults is not timed.

    Args:
        max_abs_difference: largest |difference| of a probability; None if it was not compared for all classes.
        faults: one entry for each golden image with a wrong answer or none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lane: Lane
    golden_inputs: int
    max_abs_difference: float | None
    faults: tuple[str, ...]

    @property
    def name(self) -> str:
        """The lane's name."""
        return self.lane.name

    @property
    def parity(self) -> str:
        """The result for tables: `16 of 16` or `FAILED`."""
        return f"{self.golden_inputs} of {self.golden_inputs}" if not self.faults else "FAILED"


def check_parity(lane: Lane, bundle: Bundle | None, api_key: str | None = None) -> LaneParity:
    """Send every golden image. Our own servers must return every probability, other servers the classes they choose."""
    endpoint = lane.endpoint
    if bundle is not None and endpoint is not None:
        with connect(
            endpoint, lane.model, lane.version, protocol=lane.protocol, timeout_s=_TIMEOUT_S, api_key=api_key
        ) as client:
            return _all_probabilities(client, lane, bundle)
    golden = golden_requests(lane, bundle)
    check = AnswerCheck(lane.wire(bundle.manifest if bundle is not None else None), lane.tolerance)
    faults = []
    with httpx.Client(base_url=lane.url, timeout=_TIMEOUT_S, trust_env=False) as http:
        for number, one in enumerate(golden):
            fault = _send(http, check, one, kept=number > 0)
            if fault is not None:
                faults.append(f"{one.name}: {fault}")
    return LaneParity(lane=lane, golden_inputs=len(golden), max_abs_difference=None, faults=tuple(faults))


def _all_probabilities(client: Client, lane: Lane, bundle: Bundle) -> LaneParity:
    examples = bundle.golden_examples()
    largest, faults = 0.0, []
    for example in examples:
        fault: Fault | None
        try:
            answer = client.predict(example.data, top_k=len(bundle.manifest.labels))
        except TridentError as error:
            fault = Fault("no-answer", error.message)
        else:
            fault = compare(answer, example.expected, lane.tolerance)
            largest = max(largest, max_abs_difference(answer, example.expected))
        if fault is not None:
            faults.append(f"{example.name}: {fault}")
    difference = None if faults else largest
    return LaneParity(lane=lane, golden_inputs=len(examples), max_abs_difference=difference, faults=tuple(faults))


def _send(http: httpx.Client, check: AnswerCheck, golden: GoldenRequest, *, kept: bool) -> Fault | None:
    """Send one request over `http`. `kept`: over a connection that the server may have closed by now."""
    request = golden.request
    post = partial(http.post, request.path, headers=dict(request.headers), content=request.body)
    try:
        try:
            response = post()
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if not kept:
                raise
            response = post()  # on a new connection
    except httpx.HTTPError as error:
        return Fault("no-answer", f"{type(error).__name__}: {error}")
    return check.fault(golden, response.status_code, lambda: dict(response.headers), response.content)
