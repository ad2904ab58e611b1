"""Proof that the servers agree: golden answers from each, and errors that are the client's where the input is at
fault.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from serving.bundle import Bundle
from serving.clients.golden import check_golden
from serving.clients.http_client import HttpClient
from serving.clients.wire import RefusedError
from serving.errors import TridentError
from serving.server_plan import Endpoint


@dataclass(frozen=True)
class Check:
    """One check of one server. `detail` says what was seen, and for a failure names the picture."""

    server: str
    name: str
    passed: bool
    detail: str


def verify(endpoint: Endpoint, bundle: Bundle) -> list[Check]:
    """Every check of one server."""
    with HttpClient(endpoint, bundle.manifest.model, bundle.manifest.version) as client:
        return [Check(endpoint.server, name, *check(client, bundle)) for name, check in CHECKS.items()]


def _golden(client: HttpClient, bundle: Bundle) -> tuple[bool, str]:
    result = check_golden(client, bundle)
    if result.agrees:
        return True, f"{result.pictures} pictures, max |difference| {result.max_abs_difference:.1e}"
    return False, "; ".join(result.faults[:3]) + (
        f"; and {len(result.faults) - 3} more" if len(result.faults) > 3 else ""
    )


def _refuses(make: Callable[[bytes], bytes]) -> Callable[[HttpClient, Bundle], tuple[bool, str]]:
    """A check that the server answers a broken picture with a 4xx."""

    def check(client: HttpClient, bundle: Bundle) -> tuple[bool, str]:
        picture = make(bundle.golden_pictures()[0][1])
        try:
            answer = client.predict(picture)
        except RefusedError as error:
            return 400 <= error.code < 500, error.message
        except TridentError as error:
            return False, error.message
        return False, f"answered {answer.top.label!r} to a broken picture"

    return check


CHECKS: Final[dict[str, Callable[[HttpClient, Bundle], tuple[bool, str]]]] = {
    "golden answers": _golden,
    "truncated picture": _refuses(lambda data: data[: len(data) // 2]),
    "corrupt picture": _refuses(lambda data: data[:16] + bytes(255 - byte for byte in data[16:])),
    "not a picture": _refuses(lambda _: b"this is no picture" * 10),
    "empty body": _refuses(lambda _: b""),
    "golden answers again": _golden,  # the broken pictures did no harm
}


def all_passed(checks: Sequence[Check]) -> bool:
    """Whether nothing failed."""
    return all(check.passed for check in checks)
