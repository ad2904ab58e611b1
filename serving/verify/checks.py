"""`trident verify`: proof that the servers agree. A row per check, a column per lane (a server and a protocol).

Right answers to golden and to edge-case images, client errors for bad input, truthful health endpoints, metrics that
count, and versions that are reported.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from bundle.errors import TridentError
from bundle.golden import Expected, Fault
from bundle.preprocess import preprocess
from bundle.store import Bundle, GoldenExample
from serving.clients.client import Client
from serving.clients.connect import connect
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import Endpoint, Protocol
from serving.clients.golden import GoldenResult, check_examples
from serving.clients.http_wire import API_KEY_HEADER, RefusedError
from serving.runtimes import Runtime, artefact_for, open_runtime
from serving.server_api import fetch, metric_sum
from serving.settings import ServingSettings
from serving.verify.edge_case_images import edge_case_images, too_many_pixels

_NO_SUCH_VERSION: Final = 999_999
_CONCURRENT: Final = 8
_COUNTED_WITHIN_S: Final = 2.0  # another process than the one that answered may report the counter, a little later


@dataclass(frozen=True)
class Check:
    """One check of one lane.

    Args:
        passed: None where the check does not apply.
        detail: what was seen; for a failure it names the image.
    """

    lane: str
    name: str
    passed: bool | None
    detail: str


Outcome = tuple[bool | None, str]


@dataclass(frozen=True)
class LaneUnderTest:
    """What the checks of one lane share."""

    endpoint: Endpoint
    protocol: Protocol
    bundle: Bundle
    settings: ServingSettings
    is_default: bool

    @property
    def name(self) -> str:
        """The column's head."""
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
    settings: ServingSettings,
    *,
    is_default: bool = True,
) -> list[Check]:
    """Every check of one lane.

    Args:
        settings: what the server runs with: its precision decides the tolerance.
        is_default: whether the bundle's version answers requests that name none.
    """
    lane = LaneUnderTest(endpoint, protocol, bundle, settings, is_default)
    checks: list[Check] = []

    def check(name: str, outcome: Callable[[], Outcome]) -> None:
        try:
            checks.append(Check(lane.name, name, *outcome()))
        except TridentError as error:
            checks.append(Check(lane.name, name, False, error.message))

    golden = bundle.golden_examples()
    result = _ask(lane, golden)
    check("golden probabilities", lambda: _no_faults(result, "no-answer", "probabilities"))
    check("labels", lambda: _no_faults(result, "no-answer", "labels"))
    check("version", lambda: _no_faults(result, "no-answer", "version"))
    check("default version", lambda: _default_version(lane))
    runtime = _reference(lane)
    for name, data in edge_case_images().items():
        check(name, lambda name=name, data=data: _edge_case(lane, runtime, name, data))  # type: ignore[misc]
    image = golden[0].data
    for name, broken in _broken(image).items():
        check(name, lambda broken=broken: _refused(lane, broken))  # type: ignore[misc]
    check("too many bytes", lambda: _refused(lane, image + bytes(lane.settings.max_body_bytes)))
    check("top_k = 0", lambda: _refused(lane, image, top_k=0))
    check("unknown model", lambda: _refused(lane, image, model="nobody", statuses=(404,)))
    check("unknown version", lambda: _refused(lane, image, version=_NO_SUCH_VERSION, statuses=(404,)))
    check("a bad one among good ones", lambda: _independent(lane, golden))
    check("health", lambda: _health(lane))
    check("metrics", lambda: _metrics(lane, image))
    check("golden answers again", lambda: _no_faults(_ask(lane, golden)))  # the broken images did no harm
    return checks


def all_passed(checks: Sequence[Check]) -> bool:
    """Whether no check failed."""
    return all(check.passed is not False for check in checks)


# --- right answers


def _ask(lane: LaneUnderTest, examples: list[GoldenExample]) -> GoldenResult:
    with lane.client() as client:
        return check_examples(client, examples, lane.tolerance)


def _no_faults(result: GoldenResult, *kinds: str) -> Outcome:
    """Passed if there is no fault of these kinds (none named: of any kind)."""
    faults = [f"{name}: {fault}" for name, fault in result.faults if not kinds or fault.kind in kinds]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        return False, "; ".join(faults[:3]) + more
    return True, f"{result.images} images, max |difference| {result.max_abs_difference or 0.0:.1e}"


def _default_version(lane: LaneUnderTest) -> Outcome:
    manifest = lane.bundle.manifest
    if not lane.is_default:
        return None, "another version is the default"
    key = lane.settings.client_key
    with connect(lane.endpoint, manifest.model, None, protocol=lane.protocol, api_key=key) as client:
        answer = client.predict(lane.bundle.golden_inputs()[0][1], 1)
    right = (answer.model, answer.version) == (manifest.model, manifest.version)
    return right, f"{answer.model}:{answer.version} answers when the request names no version"


def _reference(lane: LaneUnderTest) -> Runtime:
    """The model in this process: the expected answers to images without golden ones."""
    runtime = "onnxruntime" if lane.settings.precision == "fp32" else lane.settings.runtime
    return open_runtime(lane.bundle, runtime, lane.settings.precision, "cpu", 1)


def _edge_case(lane: LaneUnderTest, runtime: Runtime, name: str, data: bytes) -> Outcome:
    probabilities = runtime.infer(preprocess(data, lane.bundle.manifest.input)[np.newaxis])[0]
    example = GoldenExample(name, data, Expected(probabilities))
    return _no_faults(_ask(lane, [example]))


# --- errors


def _broken(image: bytes) -> dict[str, bytes]:
    return {
        "truncated image": image[: len(image) // 2],
        "corrupt image": image[:16] + bytes(255 - byte for byte in image[16:]),
        "not an image": b"this is not an image" * 10,
        "empty body": b"",
        "too many pixels": too_many_pixels(),
    }


def _refused(
    lane: LaneUnderTest,
    image: bytes,
    *,
    top_k: int | None = None,
    model: str | None = None,
    version: int | None = None,
    statuses: Sequence[int] = range(400, 500),
) -> Outcome:
    """Passed if the request is refused with a client error."""
    try:
        with lane.client(model=model, version=version) as client:
            answer = client.predict(image, top_k)
    except RefusedError as error:
        return error.code in statuses, error.message
    return False, f"answered {answer.top.label!r}"


def _independent(lane: LaneUnderTest, golden: Sequence[GoldenExample]) -> Outcome:
    """Concurrent requests, one of them broken: only that one fails, with a client error."""
    good = [golden[number % len(golden)] for number in range(_CONCURRENT - 1)]
    image = golden[0].data
    with ThreadPoolExecutor(_CONCURRENT) as pool:
        answers = [pool.submit(_ask, lane, [one]) for one in good[: _CONCURRENT // 2]]
        broken = pool.submit(_refused, lane, image[: len(image) // 2])
        answers += [pool.submit(_ask, lane, [one]) for one in good[_CONCURRENT // 2 :]]
    faults: list[tuple[str, Fault]] = [fault for answer in answers for fault in answer.result().faults]
    refused, detail = broken.result()
    if faults:
        return False, f"the good ones: {faults[0][0]}: {faults[0][1]}"
    return refused, f"the bad one: {detail}"


# --- what operators see


def _health(lane: LaneUnderTest) -> Outcome:
    if lane.protocol != "http":
        return None, "checked over HTTP"
    dialect = dialect_of(lane.endpoint.server)
    for path in dialect.health_paths:
        status = _status(lane, path)
        if status != 200:
            return False, f"{path}: {status}"
    if not dialect.reports_model_readiness:
        return True, f"{', '.join(dialect.health_paths)}: 200"
    model, unknown = (_status(lane, f"/v2/models/{name}/ready") for name in (lane.bundle.manifest.model, "nobody"))
    return model == 200 and unknown != 200, f"ready: the model {model}, an unknown one {unknown}"


def _metrics(lane: LaneUnderTest, image: bytes) -> Outcome:
    if lane.protocol != "http":
        return None, "checked over HTTP"
    counter = dialect_of(lane.endpoint.server).request_counter
    before = _counted(lane)
    if before is None:
        return False, f"{lane.endpoint.metrics_url} does not answer"
    with lane.client() as client:
        client.predict(image, 1)
    deadline = time.monotonic() + _COUNTED_WITHIN_S
    while (after := _counted(lane) or 0.0) <= before and time.monotonic() < deadline:
        time.sleep(0.05)
    return after > before, f"{counter}: {before:.0f}, after a request {after:.0f}"


def _counted(lane: LaneUnderTest) -> float | None:
    """The counter of requests, over all labels; None if it cannot be read."""
    counter = dialect_of(lane.endpoint.server).request_counter
    return metric_sum(lane.endpoint.metrics_url, rf"{counter}\{{.*\}}")


def _status(lane: LaneUnderTest, path: str) -> int:
    """The status of a GET; 0 if there is no response."""
    key = lane.settings.client_key
    try:
        return fetch(lane.endpoint.url + path, {} if key is None else {API_KEY_HEADER: key})[0]
    except OSError:
        return 0
