"""Proof that the servers agree: a row per check, a column per lane (a server and a protocol).

Right answers to golden and to odd images, errors that are the client's where the input is at fault, health that is
true, metrics that count, versions that are reported.
"""

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from bundle.errors import TridentError
from bundle.postprocess import Probabilities
from bundle.preprocess import preprocess
from bundle.store import Bundle
from serving.clients.client import Client
from serving.clients.connect import connect
from serving.clients.endpoint import Endpoint, Protocol
from serving.clients.golden import Comparison, compare
from serving.clients.http_wire import RefusedError
from serving.runtimes import Runtime, artefact_for, open_runtime
from serving.server_api import fetch
from serving.settings import ServingSettings
from serving.verify.edge_case_images import edge_case_images, too_many_pixels

_NO_SUCH_VERSION: Final = 999_999
_TOGETHER: Final = 8
_COUNTED_WITHIN_S: Final = 2.0  # another process than the one asked may have answered, and tells a little later
# Where each server says that it is well, and which of its metrics counts requests.
_HEALTH: Final = {
    "fastapi": ("/v2/health/live", "/v2/health/ready"),
    "torchserve": ("/ping",),
    "triton": ("/v2/health/live", "/v2/health/ready"),
}
_COUNTER: Final = {
    "fastapi": r"trident_requests_total\{",
    "torchserve": r"ts_inference_requests_total\{",
    "triton": r"nv_inference_request_success\{",
}


@dataclass(frozen=True)
class Check:
    """One check of one lane. `passed` is None where the check does not apply. `detail` says what was seen, and for a
    failure names the image.
    """

    lane: str
    name: str
    passed: bool | None
    detail: str


Outcome = tuple[bool | None, str]


@dataclass(frozen=True)
class Lane:
    """What the checks of one lane share."""

    endpoint: Endpoint
    protocol: Protocol
    bundle: Bundle
    settings: ServingSettings
    is_default: bool

    @property
    def name(self) -> str:
        """As the column's head."""
        return f"{self.endpoint.server} {self.protocol}"

    @property
    def tolerance(self) -> float:
        """Largest |difference| of a probability."""
        return artefact_for(self.bundle, self.settings.runtime, self.settings.precision).tolerance

    def client(self, *, model: str | None = None, version: int | None = None) -> Client:
        """A client of the bundle's version, or of another model or version."""
        manifest = self.bundle.manifest
        wanted = version if version is not None else manifest.version
        key = self.settings.client_key
        return connect(self.endpoint, model or manifest.model, wanted, protocol=self.protocol, api_key=key)


def verify(
    endpoint: Endpoint,
    protocol: Protocol,
    bundle: Bundle,
    settings: ServingSettings | None = None,
    *,
    is_default: bool = True,
) -> list[Check]:
    """Every check of one lane.

    Args:
        settings: what the server runs with (its precision decides the tolerance).
        is_default: the bundle's version answers when none is asked for.
    """
    lane = Lane(endpoint, protocol, bundle, settings or ServingSettings(), is_default)
    checks: list[Check] = []

    def check(name: str, outcome: Callable[[], Outcome]) -> None:
        try:
            checks.append(Check(lane.name, name, *outcome()))
        except TridentError as error:
            checks.append(Check(lane.name, name, False, error.message))

    golden = [
        (name, data, row)
        for (name, data), row in zip(bundle.golden_inputs(), bundle.golden_probabilities(), strict=True)
    ]
    compared = _compared(lane, golden)
    check("golden probabilities", lambda: _all_right(compared, lambda one: one.probabilities))
    check("labels", lambda: _all_right(compared, lambda one: one.labels))
    check("version", lambda: _all_right(compared, lambda one: one.version))
    check("default version", lambda: _default_version(lane))
    runtime = _reference(lane)
    for name, data in edge_case_images().items():
        check(name, lambda name=name, data=data: _edge_case(lane, runtime, name, data))  # type: ignore[misc]
    image = golden[0][1]
    for name, broken in _broken(image).items():
        check(name, lambda broken=broken: _refused(lane, broken))  # type: ignore[misc]
    check("too many bytes", lambda: _refused(lane, image + bytes(lane.settings.max_body_bytes)))
    check("top_k = 0", lambda: _refused(lane, image, top_k=0))
    check("unknown model", lambda: _refused(lane, image, model="nobody", statuses=(404,)))
    check("unknown version", lambda: _refused(lane, image, version=_NO_SUCH_VERSION, statuses=(404,)))
    check("a bad one among good ones", lambda: _independent(lane, golden))
    check("health", lambda: _health(lane))
    check("metrics", lambda: _metrics(lane, image))
    again = _compared(lane, golden)
    check("golden answers again", lambda: _all_right(again, lambda one: one.fault))  # the broken ones did no harm
    return checks


def all_passed(checks: Sequence[Check]) -> bool:
    """Whether nothing failed."""
    return all(check.passed is not False for check in checks)


# --- right answers

Compared = list[tuple[str, Comparison | str]]


def _compared(lane: Lane, images: Sequence[tuple[str, bytes, Probabilities]]) -> Compared:
    """Each image's name, and its comparison or why there was no answer."""
    found: Compared = []
    with lane.client() as client:
        for name, data, expected in images:
            try:
                answer = client.predict(data, len(expected))
            except TridentError as error:
                found.append((name, error.message))
            else:
                found.append((name, compare(answer, lane.bundle, expected, lane.tolerance)))
    return found


def _all_right(compared: Compared, aspect: Callable[[Comparison], str]) -> Outcome:
    faults = [f"{name}: {fault}" for name, one in compared if (fault := one if isinstance(one, str) else aspect(one))]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        return False, "; ".join(faults[:3]) + more
    worst = max((one.max_abs_difference for _, one in compared if isinstance(one, Comparison)), default=0.0)
    return True, f"{len(compared)} images, max |difference| {worst:.1e}"


def _default_version(lane: Lane) -> Outcome:
    manifest = lane.bundle.manifest
    if not lane.is_default:
        return None, "another version is the default"
    key = lane.settings.client_key
    with connect(lane.endpoint, manifest.model, None, protocol=lane.protocol, api_key=key) as client:
        answer = client.predict(lane.bundle.golden_inputs()[0][1], 1)
    right = (answer.model, answer.version) == (manifest.model, manifest.version)
    return right, f"{answer.model}:{answer.version} answers when no version is asked for"


def _reference(lane: Lane) -> Runtime:
    """The model in this process: what is right for images without golden answers."""
    runtime = "onnxruntime" if lane.settings.precision == "fp32" else lane.settings.runtime
    return open_runtime(lane.bundle, runtime, lane.settings.precision, "cpu", 1)


def _edge_case(lane: Lane, runtime: Runtime, name: str, data: bytes) -> Outcome:
    expected = runtime.infer(preprocess(data, lane.bundle.manifest.input)[np.newaxis])[0]
    return _all_right(_compared(lane, [(name, data, expected)]), lambda one: one.probabilities)


# --- errors


def _broken(image: bytes) -> dict[str, bytes]:
    return {
        "truncated image": image[: len(image) // 2],
        "corrupt image": image[:16] + bytes(255 - byte for byte in image[16:]),
        "not an image": b"this is no image" * 10,
        "empty body": b"",
        "too many pixels": too_many_pixels(),
    }


def _refused(
    lane: Lane,
    image: bytes,
    *,
    top_k: int | None = None,
    model: str | None = None,
    version: int | None = None,
    statuses: Sequence[int] = range(400, 500),
) -> Outcome:
    """Whether the request is refused as the client's fault."""
    try:
        with lane.client(model=model, version=version) as client:
            answer = client.predict(image, top_k)
    except RefusedError as error:
        return error.code in statuses, error.message
    return False, f"answered {answer.top.label!r}"


def _independent(lane: Lane, golden: Sequence[tuple[str, bytes, Probabilities]]) -> Outcome:
    """Requests that run at the same time, one of them broken: it alone fails, as the client's fault."""
    good = [golden[number % len(golden)] for number in range(_TOGETHER - 1)]
    image = golden[0][1]
    with ThreadPoolExecutor(_TOGETHER) as pool:
        answers = [pool.submit(_compared, lane, [one]) for one in good[: _TOGETHER // 2]]
        broken = pool.submit(_refused, lane, image[: len(image) // 2])
        answers += [pool.submit(_compared, lane, [one]) for one in good[_TOGETHER // 2 :]]
    right, others = _all_right([one for answer in answers for one in answer.result()], lambda one: one.fault)
    refused, detail = broken.result()
    return right and refused, f"the bad one: {detail}" if right else f"the good ones: {others}"


# --- what operators see


def _health(lane: Lane) -> Outcome:
    if lane.protocol != "http":
        return None, "asked over HTTP"
    for path in _HEALTH[lane.endpoint.server]:
        status, _ = _get(lane, lane.endpoint.url + path)
        if status != 200:
            return False, f"{path}: {status}"
    if lane.endpoint.server == "torchserve":
        return True, "/ping: 200"
    ready = [
        _get(lane, f"{lane.endpoint.url}/v2/models/{model}/ready")[0]
        for model in (lane.bundle.manifest.model, "nobody")
    ]
    return ready[0] == 200 and ready[1] != 200, f"ready: the model {ready[0]}, an unknown one {ready[1]}"


def _metrics(lane: Lane, image: bytes) -> Outcome:
    if lane.protocol != "http":
        return None, "asked over HTTP"
    before = _counted(lane)
    with lane.client() as client:
        client.predict(image, 1)
    deadline = time.monotonic() + _COUNTED_WITHIN_S
    while (after := _counted(lane)) <= before and time.monotonic() < deadline:
        time.sleep(0.05)
    return (
        after > before,
        f"{_COUNTER[lane.endpoint.server].rstrip('{')[:-1]}: {before:.0f}, after a request {after:.0f}",
    )


def _counted(lane: Lane) -> float:
    """The sum of the counter of requests; 0 if it is not there."""
    _, text = _get(lane, lane.endpoint.metrics_url)
    return sum(
        float(value) for value in re.findall(rf"^{_COUNTER[lane.endpoint.server]}.*\}} (\S+)", text, re.MULTILINE)
    )


def _get(lane: Lane, url: str) -> tuple[int, str]:
    headers = {} if lane.settings.client_key is None else {"x-api-key": lane.settings.client_key}
    try:
        status, body = fetch(url, headers)
    except OSError as error:
        return 0, str(error)
    return status, body.decode(errors="replace")
