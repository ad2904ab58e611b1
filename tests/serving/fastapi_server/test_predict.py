"""`POST /predict` and the rest of the HTTP interface, in process."""

import base64
import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from bundle.errors import BundleError
from bundle.store import Bundle
from serving.fastapi_server.app import Application, create_app
from serving.fastapi_server.service import Service
from serving.settings import ServingSettings
from tests.serving.fastapi_server.waiting import wait_for

PNG = {"content-type": "image/png"}


@pytest.fixture
def client(settings: ServingSettings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def image(digits: Bundle) -> bytes:
    return digits.golden_inputs()[0][1]


def problem(response: httpx.Response) -> tuple[int, str]:
    """Status and kind of a problem, after checking its form."""
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert body["title"]
    assert body["detail"]
    return response.status_code, body["type"].rpartition(":")[2]


def test_all_forms_of_body_get_the_same_answer(client: TestClient, digits: Bundle, image: bytes) -> None:
    encoded = base64.b64encode(image).decode()
    answers = [
        client.post("/predict", content=image, headers=PNG),
        client.post("/predict", content=image),
        client.post("/predict", content=image, headers={"content-type": "application/octet-stream"}),
        client.post("/predict", files={"file": ("digit.png", image, "image/png")}),
        client.post("/predict", json={"image_b64": encoded}),
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json() == answers[0].json() for answer in answers)
    best = answers[0].json()["predictions"][0]
    golden = digits.golden_probabilities()[0]
    assert best["class_id"] == int(golden.argmax())
    assert best["probability"] == pytest.approx(float(golden.max()), abs=1e-5)
    assert (answers[0].json()["model"], answers[0].json()["version"]) == ("digits", 1)


def test_every_golden_image(client: TestClient, digits: Bundle) -> None:
    for (_, data), golden in zip(digits.golden_inputs(), digits.golden_probabilities(), strict=True):
        entries = client.post("/predict?top_k=10", content=data, headers=PNG).json()["predictions"]
        got = np.array([entry["probability"] for entry in sorted(entries, key=lambda entry: entry["class_id"])])
        assert np.abs(got - golden).max() < 1e-5


def test_top_k_by_query_and_header(client: TestClient, image: bytes) -> None:
    assert len(client.post("/predict", content=image).json()["predictions"]) == 5
    assert len(client.post("/predict?top_k=2", content=image).json()["predictions"]) == 2
    assert len(client.post("/predict", content=image, headers={"X-Top-K": "3"}).json()["predictions"]) == 3
    assert problem(client.post("/predict?top_k=0", content=image)) == (400, "bad-request")
    assert problem(client.post("/predict", content=image, headers={"X-Top-K": "many"})) == (400, "bad-request")


def test_model_and_version(client: TestClient, image: bytes) -> None:
    assert client.post("/predict?model=digits&version=1", content=image).status_code == 200
    assert problem(client.post("/predict?model=cats", content=image)) == (404, "unknown-model")
    assert problem(client.post("/predict?version=9", content=image)) == (404, "unknown-model")


def test_server_timing(client: TestClient, image: bytes) -> None:
    header = client.post("/predict", content=image).headers["server-timing"]
    stages = dict(entry.split(";dur=") for entry in header.split(", "))
    assert list(stages) == ["decode", "queue", "inference", "total"]
    assert all(float(milliseconds) >= 0 for milliseconds in stages.values())
    assert float(stages["total"]) >= float(stages["decode"]) + float(stages["inference"])


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"", PNG, (400, "empty-image")),
        (b"no image at all", PNG, (415, "not-an-image")),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", PNG, (422, "undecodable-image")),
        (b"x", {"content-type": "text/plain"}, (415, "unsupported-media-type")),
        (b"x", {"content-type": "application/x-www-form-urlencoded"}, (415, "unsupported-media-type")),
        (b"{", {"content-type": "application/json"}, (400, "bad-request")),
        (b'{"image": "x"}', {"content-type": "application/json"}, (400, "bad-request")),
        (b'{"image_b64": "???"}', {"content-type": "application/json"}, (400, "bad-request")),
        (b'{"image_b64": ""}', {"content-type": "application/json"}, (400, "empty-image")),
        (b"x", {"content-type": "multipart/form-data"}, (400, "bad-request")),
        (b"x", {"content-type": "multipart/form-data; boundary=y"}, (400, "bad-request")),
    ],
)
def test_bad_bodies(client: TestClient, body: bytes, headers: dict[str, str], expected: tuple[int, str]) -> None:
    assert problem(client.post("/predict", content=body, headers=headers)) == expected


def test_a_form_without_the_field(client: TestClient, image: bytes) -> None:
    assert problem(client.post("/predict", files={"image": image})) == (400, "bad-request")
    assert problem(client.post("/predict", data={"file": "text"}, files={"x": b"y"})) == (400, "bad-request")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_image(client: TestClient, image: bytes) -> None:
    assert problem(client.post("/predict", content=image[: len(image) // 2], headers=PNG)) == (
        422,
        "undecodable-image",
    )


def test_too_many_bytes(settings: ServingSettings, image: bytes) -> None:
    small = settings.model_copy(update={"max_body_bytes": 2000})
    sent: list[int] = []

    def endless() -> Iterator[bytes]:
        for i in range(10_000):
            sent.append(i)
            yield b"\0" * 1000

    with TestClient(create_app(small)) as client:
        assert problem(client.post("/predict", content=b"\0" * 2001, headers=PNG)) == (413, "body-too-large")
        assert problem(client.post("/predict", content=endless(), headers=PNG)) == (413, "body-too-large")
        assert problem(client.post("/predict", files={"file": b"\0" * 3000})) == (413, "body-too-large")
        assert client.post("/predict", content=image, headers=PNG).status_code == 200


def test_too_many_pixels(settings: ServingSettings, image: bytes) -> None:
    with TestClient(create_app(settings.model_copy(update={"max_image_pixels": 63}))) as client:
        assert problem(client.post("/predict", content=image, headers=PNG)) == (413, "too-many-pixels")


def test_errors_of_routing_are_problems(client: TestClient) -> None:
    assert problem(client.get("/nowhere")) == (404, "not-found")
    assert problem(client.get("/predict")) == (405, "method-not-allowed")


def test_health_and_metrics(client: TestClient, image: bytes) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    client.post("/predict", content=image)
    client.post("/predict", content=b"")
    text = client.get("/metrics").text
    assert 'trident_requests_total{code="200",model="digits"} 1.0' in text
    assert 'trident_requests_total{code="400",model="digits"} 1.0' in text
    assert 'trident_stage_duration_seconds_count{model="digits",stage="inference"} 1.0' in text
    assert 'trident_batch_size_sum{model="digits"} 1.0' in text
    assert 'trident_rejected_total{reason="empty-image"} 1.0' in text
    assert (
        'trident_model_info{device="cpu",model="digits",precision="fp32",runtime="onnxruntime",version="1"} 1.0' in text
    )
    assert "trident_build_info{" in text


def test_not_ready_before_the_models_are_loaded(settings: ServingSettings, image: bytes) -> None:
    client = TestClient(create_app(settings))  # no lifespan: nothing is loaded
    assert client.get("/v2/health/live").status_code == 200
    assert problem(client.get("/v2/health/ready")) == (503, "unavailable")
    response = client.post("/predict", content=image)
    assert problem(response) == (503, "unavailable")
    assert response.headers["retry-after"] == "1"


def test_a_missing_model_fails_the_start(settings: ServingSettings) -> None:
    app = create_app(settings.model_copy(update={"models": ("cats",)}))
    with pytest.raises(BundleError, match="no bundle cats"), TestClient(app):
        pass


class Blocked:
    """A runtime that blocks until `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        self.go.wait(10)
        return np.full((len(pixels), 10), 0.1, np.float32)


def block(client: TestClient) -> Blocked:
    """Replace the runtime of the hosted model by one that blocks."""
    blocked = Blocked()
    set_runtime(client, blocked)
    return blocked


def service_of(client: TestClient) -> Service:
    assert isinstance(client.app, Application)
    return client.app.service


def set_runtime(client: TestClient, runtime: Any) -> None:
    """Replace the runtime of the one hosted model."""
    (hosted,) = service_of(client).hosting.all()
    hosted.batcher.placement.fix("model thread")  # a blocked model must not block the event loop
    hosted.batcher._infer = runtime.infer


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_queue_is_429_and_health_still_responds(workers: int, settings: ServingSettings, image: bytes) -> None:
    shared = settings.model_copy(update={"queue_size": 2 * workers, "workers": workers, "max_batch_size": 2})
    with TestClient(create_app(shared)) as client, ThreadPoolExecutor(4) as pool:
        blocked = block(client)
        waiting = [pool.submit(client.post, "/predict", content=image) for _ in range(2)]
        wait_for(lambda: service_of(client).admission.in_flight == 2)
        response = client.post("/predict", content=image)
        assert problem(response) == (429, "overloaded")
        assert response.headers["retry-after"] == "1"
        assert client.get("/v2/health/live").status_code == 200  # the event loop is not blocked
        blocked.go.set()
        assert [future.result().status_code for future in waiting] == [200, 200]


def test_a_deadline_is_504(settings: ServingSettings, image: bytes) -> None:
    with TestClient(create_app(settings.model_copy(update={"request_timeout_s": 0.05}))) as client:
        blocked = block(client)
        assert problem(client.post("/predict", content=image)) == (504, "deadline-exceeded")
        blocked.go.set()


def test_internals_are_not_disclosed(client: TestClient, image: bytes, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def infer(self, pixels: Any) -> Any:
            raise TypeError("the secret address")

    set_runtime(client, Broken())
    with caplog.at_level(logging.ERROR):
        response = client.post("/predict", content=image)
    assert problem(response) == (500, "internal")
    assert "secret" not in response.text
    assert "the secret address" in caplog.text


def test_several_images_are_independent(client: TestClient, digits: Bundle) -> None:
    images = [data for _, data in digits.golden_inputs()[:3]]
    files = [("file", ("x", data)) for data in (images[0], b"nonsense", images[1], b"", images[2])]
    results = client.post("/predict?top_k=1", files=files).json()["results"]
    assert [entry.get("error", {}).get("status") for entry in results] == [None, 415, None, 400, None]
    golden = digits.golden_probabilities().argmax(1)
    assert [results[i]["predictions"][0]["class_id"] for i in (0, 2, 4)] == golden[:3].tolist()
    assert problem(client.post("/predict", files=[("file", ("x", b"a")), ("file", ("x", b"b"))])) == (
        415,
        "not-an-image",
    )
    too_many = [("file", ("x", images[0]))] * 65
    assert problem(client.post("/predict", files=too_many)) == (400, "bad-request")


def test_request_ids_are_repeated_or_created(client: TestClient, image: bytes) -> None:
    answer = client.post("/predict", content=image, headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    ids = {client.post("/predict", content=body).headers["x-request-id"] for body in (image, b"")}
    ids |= {client.get(path).headers["x-request-id"] for path in ("/v2/health/live", "/nowhere")}
    ids.add(client.post("/predict", content=image, headers={"x-request-id": "x" * 200}).headers["x-request-id"])
    assert len(ids) == 5


@pytest.mark.serial
def test_a_shorter_deadline_by_header(client: TestClient, image: bytes) -> None:
    blocked = block(client)
    started = time.perf_counter()
    response = client.post("/predict", content=image, headers={"X-Request-Timeout-Ms": "80"})
    assert problem(response) == (504, "deadline-exceeded")
    assert 0.07 < time.perf_counter() - started < 2
    blocked.go.set()
    for wrong in ("soon", "0", "-5", "1.5"):
        response = client.post("/predict", content=image, headers={"X-Request-Timeout-Ms": wrong})
        assert problem(response) == (400, "bad-request")


def test_api_keys(settings: ServingSettings, image: bytes) -> None:
    keys = (SecretStr("first-key"), SecretStr("second-key"))
    with TestClient(create_app(settings.model_copy(update={"api_keys": keys}))) as client:
        response = client.post("/predict", content=image)
        assert problem(response) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        for headers in (
            {"X-Api-Key": "wrong"},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic first-key"},
        ):
            assert client.post("/predict", content=image, headers=headers).status_code == 401
        for headers in ({"X-Api-Key": "first-key"}, {"Authorization": "bearer second-key"}):
            assert client.post("/predict", content=image, headers=headers).status_code == 200
        assert client.post("/v2/repository/index").status_code == 401
        assert client.post("/v2/models/digits/infer", json={}).status_code == 401
        assert client.post("/v2/repository/index", headers={"X-Api-Key": "first-key"}).status_code == 200
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/docs"):
            assert client.get(path).status_code == 200


def test_keys_are_not_printed(settings: ServingSettings) -> None:
    secret = settings.model_copy(update={"api_keys": (SecretStr("first-key"),)})
    assert "first-key" not in repr(secret) + secret.model_dump_json()


def test_too_many_requests_in_flight(settings: ServingSettings, image: bytes) -> None:
    limited = settings.model_copy(update={"max_concurrent_requests": 1})
    with TestClient(create_app(limited)) as client, ThreadPoolExecutor(1) as pool:
        blocked = block(client)
        first = pool.submit(client.post, "/predict", content=image)
        wait_for(lambda: service_of(client).admission.in_flight == 1)
        response = client.post("/predict", content=image)
        assert problem(response) == (429, "overloaded")
        assert response.headers["retry-after"] == "1"
        assert client.get("/v2/health/ready").status_code == 200
        blocked.go.set()
        assert first.result().status_code == 200


def test_fastapis_own_route_gives_the_same_answer(client: TestClient, settings: ServingSettings, image: bytes) -> None:
    """Requests do not normally reach the route that describes /predict."""
    with TestClient(create_app(settings)._fastapi) as by_fastapi:
        assert by_fastapi.post("/predict", content=image).json() == client.post("/predict", content=image).json()
        assert problem(by_fastapi.post("/predict", content=b"")) == (400, "empty-image")


def test_the_documentation_needs_no_network(client: TestClient) -> None:
    page = client.get("/docs").text
    for address in re.findall(r"""(?:src|href)=["']([^"']+)""", page):
        assert address.startswith("/"), address
        assert client.get(address).status_code == 200
    assert client.get("/", follow_redirects=False).headers["location"] == "/docs"


def test_the_documentation_describes_the_upload(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert "multipart/form-data" in operation["requestBody"]["content"]
    assert {"200", "413", "415", "422", "429", "503", "504"} <= operation["responses"].keys()
    assert client.get("/docs").status_code == 200
