"""`trident verify` against a real FastAPI service that is right, and whose bundle is not the one that is expected."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bundle.store import Bundle
from serving.clients.client import TimedPrediction
from serving.clients.endpoint import Endpoint
from serving.clients.http_client import HttpClient
from serving.clients.http_wire import RefusedError
from serving.settings import ServingSettings
from serving.verify import checks as module
from serving.verify.checks import Check, LaneUnderTest, all_passed, verify
from serving.verify.edge_case_images import edge_case_images
from tests.serving.fastapi_server.live_service import live_service


def endpoint_of(url: str) -> Endpoint:
    return Endpoint(server="fastapi", url=url, metrics_url=f"{url}/metrics")


@pytest.fixture(scope="module")
def service(digits: Bundle) -> Iterator[Endpoint]:
    """Serves `digits:1`."""
    with live_service(ServingSettings(models=(str(digits.path),), threads=1)) as live:
        yield endpoint_of(live.url)


def red(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.passed is False}


def expecting(bundle: Bundle, **changes: Any) -> Bundle:
    return Bundle(bundle.path, bundle.manifest.model_copy(update=changes))


SETTINGS = ServingSettings()
# Whatever is wrong with the golden answers is wrong with them in company, and again.
ALWAYS = {"a bad one among good ones", "golden answers again"}


def test_all_green(service: Endpoint, digits: Bundle) -> None:
    checks = verify(service, "http", digits, SETTINGS)
    assert all_passed(checks), [check for check in checks if not check.passed]
    assert len(checks) > 25
    assert {check.lane for check in checks} == {"fastapi http"}


def test_wrong_weights(digits: Bundle, other_weights: Bundle) -> None:
    with live_service(ServingSettings(models=(str(other_weights.path),), threads=1)) as live:
        checks = verify(endpoint_of(live.url), "http", digits, SETTINGS)
    assert {"golden probabilities", *ALWAYS} <= red(checks) <= {"golden probabilities", *ALWAYS, *edge_case_images()}
    (golden,) = (check for check in checks if check.name == "golden probabilities")
    assert "golden/00.png: probabilities differ by" in golden.detail


def test_wrong_labels(service: Endpoint, digits: Bundle) -> None:
    swapped = (digits.manifest.labels[1], digits.manifest.labels[0], *digits.manifest.labels[2:])
    assert red(verify(service, "http", expecting(digits, labels=swapped), SETTINGS)) == {"labels", *ALWAYS}


def test_wrong_resize_policy(service: Endpoint, digits: Bundle) -> None:
    padded = digits.manifest.input.model_copy(update={"resize": "pad"})
    failed = red(verify(service, "http", expecting(digits, input=padded), SETTINGS))
    assert {"very wide PNG", "very tall PNG"} <= failed <= set(edge_case_images())


def test_a_version_that_is_not_there(service: Endpoint, digits: Bundle) -> None:
    failed = red(verify(service, "http", expecting(digits, version=2), SETTINGS))
    assert {"version", "default version"} <= failed


def test_a_version_that_is_not_the_default(service: Endpoint, digits: Bundle) -> None:
    checks = {check.name: check.passed for check in verify(service, "http", digits, SETTINGS, is_default=False)}
    assert checks["default version"] is None


@pytest.mark.parametrize(
    ("victim", "fate"),
    [
        pytest.param(0, 422, id="a good one fails too"),
        pytest.param(0, 1, id="a good one gets the answer to another"),
        pytest.param(-1, 500, id="the bad one is called the server's fault"),
        pytest.param(-1, 0, id="the bad one is answered"),
    ],
)
def test_a_bad_one_must_fail_alone_and_as_the_clients_fault(
    victim: int, fate: int, service: Endpoint, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes along with others, and so from a thread of its own, is refused, or answered as another image."""
    images = [data for _, data in digits.golden_inputs()]
    images.append(images[0][: len(images[0]) // 2])

    class InACrowd(HttpClient):
        def ask(self, image: bytes, top_k: int | None = None) -> TimedPrediction:
            if image != images[victim] or threading.current_thread() is threading.main_thread():
                return super().ask(image, top_k)
            if fate >= 400:
                raise RefusedError(fate, f"HTTP {fate}")
            return super().ask(images[fate], top_k)

    def connect(endpoint: Endpoint, model: str, version: int | None, **_: Any) -> HttpClient:
        return InACrowd(endpoint, model, version)

    monkeypatch.setattr(module, "connect", connect)
    assert red(verify(service, "http", digits, SETTINGS)) == {"a bad one among good ones"}


@pytest.mark.parametrize(("counted", "passed"), [([7, 7, 7, 8], True), ([7], False)])
def test_a_request_may_be_counted_a_little_later(
    counted: list[int], passed: bool, service: Endpoint, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COUNTED_WITHIN_S", 1.0 if passed else 0.1)
    monkeypatch.setattr(module, "_counted", lambda _: counted.pop(0) if len(counted) > 1 else counted[0])
    outcome = module._metrics(
        LaneUnderTest(service, "http", digits, ServingSettings(), True), digits.golden_inputs()[0][1]
    )
    assert outcome == (passed, f"trident_requests_total: 7, after a request {counted[-1]}")


def test_odd_images_are_what_their_names_say() -> None:
    import io

    from PIL import Image

    opened = {name: Image.open(io.BytesIO(data)) for name, data in edge_case_images().items()}
    assert opened["CMYK JPEG"].mode == "CMYK"
    assert opened["16-bit PNG"].mode == "I;16"
    assert opened["palette PNG"].mode == "P"
    assert opened["alpha PNG"].mode == "RGBA"
    assert opened["grayscale JPEG"].mode == "L"
    assert opened["1x1 PNG"].size == (1, 1)
    assert opened["very wide PNG"].size == (2000, 16)
    assert getattr(opened["animated GIF"], "n_frames", 1) == 2
    assert opened["EXIF-rotated JPEG"].getexif()[0x0112] == 6
    assert "transparency" in opened["transparent palette"].info
