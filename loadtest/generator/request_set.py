"""The requests of a run: golden requests, bad requests, and the check of every response."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from bundle.golden import Fault
from loadtest.generator.http import prepare
from loadtest.generator.spec import BadRequests
from loadtest.lanes.golden_requests import AnswerCheck, GoldenRequest
from loadtest.lanes.lane import Lane
from serving.clients.http_wire import HttpRequest, Wire

Kind = Literal["golden", "damaged", "oversized", "aborted"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_EXPECTED: Final[dict[Kind, tuple[int, ...]]] = {"damaged": (400, 415, 422), "oversized": (413,)}
_SENT_OF_OVERSIZED: Final = 1000
_MIXED: Final = 2000
_VARIANTS: Final = 4


@dataclass(frozen=True)
class RunRequest:
    """A request that is ready to be sent.

    Args:
        message: the bytes of an HTTP request; an `HttpRequest` for a gRPC call.
        golden: the golden answer; of a bad request None.
        abort_after_s: of an aborted request, when the client closes the connection.
    """

    kind: Kind
    message: Any
    golden: GoldenRequest | None = None
    abort_after_s: float = 0.0


class RequestSet:
    """The requests of a run, in a fixed order that repeats."""

    def __init__(
        self,
        lane: Lane,
        golden: Sequence[GoldenRequest],
        wire: Wire,
        api_key: str | None = None,
        bad: BadRequests | None = None,
        seed: int = 0,
    ) -> None:
        self._check = AnswerCheck(wire, lane.tolerance)

        def message(request: HttpRequest, content_length: int | None = None) -> Any:
            return request if lane.protocol == "grpc" else prepare(request, lane.url, api_key, content_length)

        requests = [RunRequest("golden", message(one.request), one) for one in golden]
        self.requests = _mixed(requests, golden, bad, message, seed) if bad is not None and bad.share else requests
        self._order = itertools.cycle(self.requests)

    def next(self) -> RunRequest:
        """The next request to send."""
        return next(self._order)

    def fault(
        self, request: RunRequest, status: int, headers: Callable[[], Mapping[str, str]], body: bytes
    ) -> Fault | None:
        """What is wrong with a response; None if it is the expected one."""
        if request.golden is not None:
            return self._check.fault(request.golden, status, headers, body)
        expected = _EXPECTED[request.kind]
        if status in expected:
            return None
        statuses = " or ".join(map(str, expected))
        return Fault("no-answer", f"{request.kind} request: HTTP {status} instead of {statuses}: {body[:200]!r}")


def _mixed(
    good: list[RunRequest],
    golden: Sequence[GoldenRequest],
    bad: BadRequests,
    message: Callable[..., Any],
    seed: int,
) -> list[RunRequest]:
    """A random sequence with the shares of `bad`."""
    draw = random.Random(seed)  # noqa: S311 - a mix, not a secret
    http = [one.request for one in golden]
    cuts = [replace(one, body=one.body[: draw.randrange(1, len(one.body) // 2)]) for one in http * _VARIANTS]
    damaged = [RunRequest("damaged", message(one)) for one in cuts]
    zeros = replace(http[0], body=bytes(_SENT_OF_OVERSIZED))
    oversized = [RunRequest("oversized", message(zeros, bad.oversized_bytes))]
    aborted = [
        RunRequest("aborted", one.message, abort_after_s=draw.uniform(0, bad.abort_within_s))
        for one in good * _VARIANTS
    ]
    kinds = [good, damaged, oversized, aborted]
    shares = [1 - bad.share, bad.damaged, bad.oversized, bad.aborted]
    return [draw.choice(kind) for kind in draw.choices(kinds, shares, k=_MIXED)]
