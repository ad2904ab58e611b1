import base64
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from serving.bundle import Bundle
from serving.errors import BundleError
from serving.fastapi_server.app import create_app
from serving.fastapi_server.hosting import HostedModel
from serving.settings import ServingSettings

PNG = {"content-type": "image/png"}


@pytest.fixture
def client(settings: ServingSettings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def picture(digits: Bundle) -> bytes:
    return digits.golden_pictures()[0][1]


def problem(response: httpx.Response) -> tuple[int, str]:
    """Status and kind of a problem, after checking its form."""
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert body["title"]
    assert body["detail"]
    return response.status_code, body["type"].rpartition(":")[2]


def test_three_forms_one_answer(client: TestClient, digits: Bundle, picture: bytes) -> None:
    encoded = base64.b64encode(picture).decode()
    answers = [
        client.post("/predict", content=picture, headers=PNG),
        client.post("/predict", content=picture),
        client.post("/predict", content=picture, headers={"content-type": "application/octet-stream"}),
        client.post("/predict", files={"file": ("digit.png", picture, "image/png")}),
        client.post("/predict", json={"image_b64": encoded}),
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json() == answers[0].json() for answer in answers)
    best = answers[0].json()["predictions"][0]
    golden = digits.golden_probabilities()[0]
    assert best["class_id"] == int(golden.argmax())
    assert best["probability"] == pytest.approx(float(golden.max()), abs=1e-5)
    assert (answers[0].json()["model"], answers[0].json()["version"]) == ("digits", 1)


def test_every_golden_picture(client: TestClient, digits: Bundle) -> None:
    for (_, data), golden in zip(digits.golden_pictures(), digits.golden_probabilities(), strict=True):
        entries = client.post("/predict?top_k=10", content=data, headers=PNG).json()["predictions"]
        got = np.array([entry["probability"] for entry in sorted(entries, key=lambda entry: entry["class_id"])])
        assert np.abs(got - golden).max() < 1e-5


def test_top_k_by_query_and_header(client: TestClient, picture: bytes) -> None:
    assert len(client.post("/predict", content=picture).json()["predictions"]) == 5
    assert len(client.post("/predict?top_k=2", content=picture).json()["predictions"]) == 2
    assert len(client.post("/predict", content=picture, headers={"X-Top-K": "3"}).json()["predictions"]) == 3
    assert problem(client.post("/predict?top_k=0", content=picture)) == (400, "bad-request")
    assert problem(client.post("/predict", content=picture, headers={"X-Top-K": "many"})) == (400, "bad-request")


def test_model_and_version(client: TestClient, picture: bytes) -> None:
    assert client.post("/predict?model=digits&version=1", content=picture).status_code == 200
    assert problem(client.post("/predict?model=cats", content=picture)) == (404, "unknown-model")
    assert problem(client.post("/predict?version=9", content=picture)) == (404, "unknown-model")


def test_server_timing(client: TestClient, picture: bytes) -> None:
    header = client.post("/predict", content=picture).headers["server-timing"]
    stages = dict(entry.split(";dur=") for entry in header.split(", "))
    assert list(stages) == ["decode", "queue", "inference", "total"]
    assert all(float(milliseconds) >= 0 for milliseconds in stages.values())
    assert float(stages["total"]) >= float(stages["decode"]) + float(stages["inference"])


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"", PNG, (400, "empty-image")),
        (b"no picture at all", PNG, (415, "not-an-image")),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", PNG, (422, "undecodable-image")),
        (b"x", {"content-type": "text/plain"}, (415, "unsupported-media-type")),
        (b"x", {"content-type": "application/x-www-form-urlencoded"}, (415, "unsupported-media-type")),
        (b"{", {"content-type": "application/json"}, (400, "bad-request")),
        (b'{"picture": "x"}', {"content-type": "application/json"}, (400, "bad-request")),
        (b'{"image_b64": "???"}', {"content-type": "application/json"}, (400, "bad-request")),
        (b'{"image_b64": ""}', {"content-type": "application/json"}, (400, "empty-image")),
        (b"x", {"content-type": "multipart/form-data"}, (400, "bad-request")),
        (b"x", {"content-type": "multipart/form-data; boundary=y"}, (400, "bad-request")),
    ],
)
def test_bad_bodies(client: TestClient, body: bytes, headers: dict[str, str], expected: tuple[int, str]) -> None:
    assert problem(client.post("/predict", content=body, headers=headers)) == expected


def test_a_form_without_the_field(client: TestClient, picture: bytes) -> None:
    assert problem(client.post("/predict", files={"image": picture})) == (400, "bad-request")
    assert problem(client.post("/predict", data={"file": "text"}, files={"x": b"y"})) == (400, "bad-request")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_picture(client: TestClient, picture: bytes) -> None:
    assert problem(client.post("/predict", content=picture[: len(picture) // 2], headers=PNG)) == (
        422,
        "undecodable-image",
    )


def test_too_many_bytes(settings: ServingSettings, picture: bytes) -> None:
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
        assert client.post("/predict", content=picture, headers=PNG).status_code == 200


def test_too_many_pixels(settings: ServingSettings, picture: bytes) -> None:
    with TestClient(create_app(settings.model_copy(update={"max_image_pixels": 63}))) as client:
        assert problem(client.post("/predict", content=picture, headers=PNG)) == (413, "too-many-pixels")


def test_errors_of_routing_are_problems(client: TestClient) -> None:
    assert problem(client.get("/nowhere")) == (404, "not-found")
    assert problem(client.get("/predict")) == (405, "method-not-allowed")


def test_health_and_metrics(client: TestClient, picture: bytes) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    client.post("/predict", content=picture)
    client.post("/predict", content=b"")
    text = client.get("/metrics").text
    assert 'trident_requests_total{code="200",model="digits"} 1.0' in text
    assert 'trident_requests_total{code="400",model="digits"} 1.0' in text
    assert 'trident_stage_seconds_count{model="digits",stage="inference"} 1.0' in text
    assert 'trident_model_info{model="digits",runtime="onnxruntime",version="1"} 1.0' in text


def test_not_ready_before_the_models_are_loaded(settings: ServingSettings, picture: bytes) -> None:
    client = TestClient(create_app(settings))  # no lifespan: nothing is loaded
    assert client.get("/v2/health/live").status_code == 200
    assert problem(client.get("/v2/health/ready")) == (503, "unavailable")
    response = client.post("/predict", content=picture)
    assert problem(response) == (503, "unavailable")
    assert response.headers["retry-after"] == "1"


def test_a_model_that_is_not_there_fails_the_start(settings: ServingSettings) -> None:
    app = create_app(settings.model_copy(update={"models": ("cats",)}))
    with pytest.raises(BundleError, match="no bundle cats"), TestClient(app):
        pass


class Blocked:
    """A runtime that waits until it is told to go on."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        self.go.wait(10)
        return np.full((len(pixels), 10), 0.1, np.float32)


def block(client: TestClient) -> Blocked:
    """Replace the runtime of the hosted model by one that blocks."""
    blocked = Blocked()
    (hosted,) = client.app.state.hosting.all()  # type: ignore[attr-defined]
    assert isinstance(hosted, HostedModel)
    hosted._runtime = blocked
    return blocked


def test_a_full_queue_is_429_and_health_stays_quick(settings: ServingSettings, picture: bytes) -> None:
    with TestClient(create_app(settings.model_copy(update={"queue_size": 2}))) as client, ThreadPoolExecutor(4) as pool:
        blocked = block(client)
        waiting = [pool.submit(client.post, "/predict", content=picture) for _ in range(2)]
        while client.app.state.metrics.in_flight._value.get() < 2:  # type: ignore[attr-defined]
            pass
        response = client.post("/predict", content=picture)
        assert problem(response) == (429, "overloaded")
        assert response.headers["retry-after"] == "1"
        assert client.get("/v2/health/live").status_code == 200  # the event loop is not blocked
        blocked.go.set()
        assert [future.result().status_code for future in waiting] == [200, 200]


def test_a_deadline_is_504(settings: ServingSettings, picture: bytes) -> None:
    with TestClient(create_app(settings.model_copy(update={"request_timeout_s": 0.05}))) as client:
        blocked = block(client)
        assert problem(client.post("/predict", content=picture)) == (504, "deadline-exceeded")
        blocked.go.set()


def test_internals_stay_inside(client: TestClient, picture: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (hosted,) = client.app.state.hosting.all()  # type: ignore[attr-defined]
    hosted._runtime = None
    with caplog.at_level(logging.ERROR):
        response = client.post("/predict", content=picture)
    assert problem(response) == (500, "internal")
    assert "NoneType" not in response.text
    assert "NoneType" in caplog.text


def test_docs_describe_the_upload(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert "multipart/form-data" in operation["requestBody"]["content"]
    assert {"200", "413", "415", "422", "429", "503", "504"} <= operation["responses"].keys()
    assert client.get("/docs").status_code == 200
