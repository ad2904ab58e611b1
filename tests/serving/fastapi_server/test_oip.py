"""The Open Inference Protocol, with an unmodified tritonclient."""

import asyncio
import base64
import json
import operator
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from bundle.golden import compare
from bundle.manifest import DEFAULT_TOLERANCE
from bundle.preprocess import Pixels, preprocess
from bundle.schemas import Prediction
from bundle.store import Bundle, read_bundle
from serving.clients.endpoint import Endpoint
from serving.clients.golden import check_golden, predict_or_fault
from serving.clients.http_client import HttpClient
from serving.settings import ServingSettings
from tests.load import Load
from tests.serving.fastapi_server.live_service import Live, live_service
from tests.serving.fastapi_server.waiting import wait_for

Client = tritonclient.http.InferenceServerClient


@pytest.fixture(scope="module")
def live(digits: Bundle, bundles: Path) -> Iterator[Live]:
    with live_service(ServingSettings(bundles=bundles, models=("digits:1",), threads=1)) as live:
        yield live


@pytest.fixture
def client(live: Live) -> Iterator[Any]:
    client = Client(live.url.removeprefix("http://"))
    yield client
    client.close()


def images_input(images: list[bytes], *, binary: bool = True) -> Any:
    tensor = tritonclient.http.InferInput("image", [len(images), 1], "BYTES")
    values = images if binary else [base64.b64encode(data) for data in images]
    tensor.set_data_from_numpy(np.array(values, dtype=np.object_).reshape(-1, 1), binary_data=binary)
    return tensor


def image_input(pixels: Pixels, *, binary: bool = True) -> Any:
    tensor = tritonclient.http.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return tensor


def pixels_of(digits: Bundle, count: int) -> Pixels:
    return np.stack([preprocess(data, digits.manifest.input) for _, data in digits.golden_inputs()[:count]])


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits_classifier", "1")
    assert not client.is_model_ready("cats")
    assert not client.is_model_ready("digits", "9")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("digits_classifier")
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 3, 32, 32]}]
    assert metadata["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]
    assert metadata["platform"] == "onnxruntime_onnx"
    assert client.get_model_metadata("digits")["versions"] == ["1"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tensors_in_json_and_binary(client: Any, digits: Bundle, binary_in: bool, binary_out: bool) -> None:
    outputs = [tritonclient.http.InferRequestedOutput("probabilities", binary_data=binary_out)]
    tensor = image_input(pixels_of(digits, 5), binary=binary_in)
    result = client.infer("digits_classifier", [tensor], outputs=outputs, request_id="x-7")
    assert np.abs(result.as_numpy("probabilities") - digits.golden_probabilities()[:5]).max() < 1e-5
    assert result.get_response()["id"] == "x-7"
    assert result.get_response()["model_version"] == "1"


@pytest.mark.parametrize("binary", [True, False])
def test_images(client: Any, digits: Bundle, binary: bool) -> None:
    images = [data for _, data in digits.golden_inputs()[:3]]
    result = client.infer("digits", [images_input(images, binary=binary)], parameters={"top_k": 10})
    for row, golden in zip(result.as_numpy("answer"), digits.golden_probabilities(), strict=False):
        entries = json.loads(row[0])["predictions"]
        assert entries[0]["class_id"] == int(golden.argmax())
        assert len(entries) == 10


def test_raw_requests_as_in_triton(live: Live, digits: Bundle) -> None:
    """The client for Triton also works with FastAPI."""
    endpoint = Endpoint(server="triton", url=live.url, metrics_url="")
    with HttpClient(endpoint, "digits", None) as client:
        assert check_golden(client, digits, DEFAULT_TOLERANCE).agrees


def test_asyncio_client(live: Live, digits: Bundle) -> None:
    async def infer() -> Any:
        async with tritonclient.http.aio.InferenceServerClient(live.url.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            requests = [client.infer("digits_classifier", [image_input(pixels_of(digits, 1))]) for _ in range(20)]
            results = await asyncio.gather(*requests)
            return [result.as_numpy("probabilities") for result in results]

    for probabilities in asyncio.run(infer()):
        assert np.abs(probabilities - digits.golden_probabilities()[:1]).max() < 1e-5


@pytest.mark.parametrize(
    ("model", "make", "status", "message"),
    [
        ("cats", lambda d: images_input([b"x"]), 404, "cats is not loaded"),
        ("digits", lambda d: images_input([b"nonsense"]), 415, "JPEG, PNG"),
        ("digits", lambda d: image_input(pixels_of(d, 1)), 400, "input 'image' must be BYTES"),
        ("digits_classifier", lambda d: images_input([b"x"]), 400, "must be UINT8"),
        (
            "digits_classifier",
            lambda d: image_input(pixels_of(d, 1)[:, :, :8]),
            400,
            r"must be UINT8 \[-1, 3, 32, 32\]",
        ),
        ("digits_classifier", lambda d: image_input(pixels_of(d, 9)), 400, "at most 8"),
        ("digits_classifier", lambda d: image_input(pixels_of(d, 1)[:0]), 400, "must be UINT8"),
    ],
)
def test_errors_reach_the_client_with_their_reason(
    client: Any, digits: Bundle, model: str, make: Any, status: int, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer(model, [make(digits)])
    assert caught.value.status() == str(status)


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"{", {}, "malformed"),
        (b"{}", {}, "inputs"),
        (b'{"inputs":[]}', {}, "inputs"),
        (b'{"inputs":[{"name":"image","shape":[1],"datatype":"UINT8"}]}', {}, "neither data nor"),
        (b'{"inputs":[{"name":"image","shape":[1,3],"datatype":"UINT8","data":[1,2,300]}]}', {}, "0 to 255"),
        (b'{"inputs":[{"name":"image","shape":[1,3],"datatype":"UINT8","data":[1,2,0.5]}]}', {}, "0 to 255"),
        (b'{"inputs":[{"name":"image","shape":[1,3],"datatype":"UINT8","data":[[1,2],[3]]}]}', {}, "image"),
        (b'{"inputs":[{"name":"image","shape":[1,4],"datatype":"UINT8","data":[1,2,3]}]}', {}, "do not fill"),
        (b'{"inputs":[{"name":"image","shape":[-1,3],"datatype":"UINT8","data":[1,2,3]}]}', {}, "must be UINT8"),
        (b'{"inputs":[{"name":"image","shape":[1,3],"datatype":"FP64","data":[1,2,3]}]}', {}, "FP64"),
        (
            b'{"inputs":[{"name":"a","shape":[9],"datatype":"UINT8","parameters":{"binary_data_size":9}}]}',
            {},
            "does not fit",
        ),
        (b"{}", {"Inference-Header-Content-Length": "77"}, "does not fit"),
        (b"{}", {"Inference-Header-Content-Length": "x"}, "does not fit"),
        (b"123", {"Inference-Header-Content-Length": "0"}, "needs 3072 bytes"),
        (b"{}", {"Content-Encoding": "gzip"}, "compressed"),
    ],
)
def test_malformed_requests_are_4xx(live: Live, body: bytes, headers: dict[str, str], message: str) -> None:
    response = httpx.post(f"{live.url}/v2/models/digits_classifier/infer", content=body, headers=headers)
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/problem+json"
    assert message in response.json()["error"]


def test_a_timeout_in_microseconds(live: Live, client: Any, digits: Bundle) -> None:
    (hosted,) = live.application.service.hosting.all()
    infer, go = hosted.batcher._infer, threading.Event()

    def held(pixels: Pixels) -> Any:
        assert go.wait(10)
        return infer(pixels)

    hosted.batcher.placement.fix("model thread")  # a blocked model must not block the event loop
    hosted.batcher._infer = held
    try:
        with pytest.raises(InferenceServerException, match="no answer within") as caught:
            client.infer("digits_classifier", [image_input(pixels_of(digits, 1))], timeout=50_000)
        assert caught.value.status() == "504"
    finally:
        go.set()
        hosted.batcher._infer = infer


def body_of(input_: Any, timeout_us: int | None = None) -> tuple[bytes, dict[str, str]]:
    """A request's body and headers, as tritonclient writes them."""
    body, length = Client.generate_request_body([input_], timeout=timeout_us)
    return body, {} if length is None else {"inference-header-content-length": str(length)}


def test_a_body_of_declared_length_and_a_chunked_one_get_the_same_response(live: Live, digits: Bundle) -> None:
    """The first takes the fast path, the second FastAPI's route; refusals included."""
    image, pixels = digits.golden_inputs()[0][1], pixels_of(digits, 2)
    good, bad = body_of(images_input([image])), body_of(images_input([image, b"no image"]))
    cases: list[tuple[str, tuple[bytes, dict[str, str]]]] = [
        ("digits", good),
        ("digits", body_of(images_input([image, image], binary=False))),
        ("digits", (good[0], good[1] | {"x-top-k": "2"})),
        ("digits", (good[0], good[1] | {"x-top-k": "none"})),
        ("digits", (good[0], good[1] | {"content-encoding": "gzip"})),
        ("digits", (good[0], good[1] | {"x-request-timeout-ms": "0"})),
        ("digits", (image, {"inference-header-content-length": "0"})),
        ("digits", bad),
        ("digits", body_of(images_input([image] * 300))),  # more than the queue holds
        ("digits", (b"{", {})),
        ("digits", body_of(image_input(pixels))),
        ("digits_classifier", body_of(image_input(pixels))),
        ("digits_classifier", body_of(image_input(pixels, binary=False))),
        ("digits_classifier", body_of(image_input(np.zeros((40, *pixels.shape[1:]), np.uint8)))),
        ("digits_classifier/versions/1", body_of(image_input(pixels), timeout_us=10_000_000)),
        ("digits_classifier/versions/1", body_of(image_input(pixels), timeout_us=-1)),
        ("digits_v1/versions/9", good),
        ("cats", good),
    ]
    statuses = []
    with httpx.Client(base_url=live.url) as client:
        for model, (body, headers) in cases:
            path = f"/v2/models/{model}/infer"
            known = {"x-request-id": "one", **headers}
            declared = client.post(path, content=body, headers=known)
            chunked = client.post(path, content=iter([body]), headers=known)
            for response in (declared, chunked):
                del response.headers["date"]
            assert declared.status_code == chunked.status_code, (model, headers, declared.text, chunked.text)
            assert declared.content == chunked.content, (model, headers)
            assert dict(declared.headers) == dict(chunked.headers), (model, headers)
            statuses.append(declared.status_code)
    assert set(statuses) == {200, 400, 404, 415}


# --- loading and unloading


@pytest.fixture
def versions(digits: Bundle, other_weights: Bundle, tmp_path: Path) -> Path:
    """digits:1, and other weights as digits:2."""
    for version, bundle in ((1, digits), (2, other_weights)):
        place = Path(shutil.copytree(bundle.path, tmp_path / "digits" / str(version)))
        manifest = place / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": version}))
    return tmp_path


def test_versions_side_by_side(versions: Path) -> None:
    one, two = (read_bundle(versions / "digits" / number) for number in ("1", "2"))
    with live_service(ServingSettings(bundles=versions, models=("digits:1", "digits:2"), threads=1)) as live:
        endpoint = Endpoint(server="fastapi", url=live.url, metrics_url="")
        for bundle in (one, two):
            with HttpClient(endpoint, "digits", bundle.manifest.version) as client:
                assert check_golden(client, bundle, DEFAULT_TOLERANCE).agrees
        with HttpClient(endpoint, "digits") as client:
            assert client.predict(one.golden_inputs()[0][1]).version == 2


def test_load_and_unload(versions: Path) -> None:
    with live_service(ServingSettings(bundles=versions, models=("digits:1",), threads=1)) as live:
        client = Client(live.url.removeprefix("http://"))
        image = read_bundle(versions / "digits" / "1").golden_inputs()[0][1]

        def states() -> dict[str, str]:
            return {entry["version"]: entry["state"] for entry in client.get_model_repository_index()}

        def answering_version() -> int:
            return int(httpx.post(f"{live.url}/predict", content=image).json()["version"])

        assert states() == {"1": "READY", "2": "UNAVAILABLE"}
        client.load_model("digits")  # the highest
        assert states() == {"1": "READY", "2": "READY"}
        assert answering_version() == 2
        body = {"parameters": {"version": 1}}
        assert httpx.post(f"{live.url}/v2/repository/models/digits/load", json=body).status_code == 200
        assert answering_version() == 1
        assert httpx.post(f"{live.url}/v2/repository/models/digits/unload", json=body).status_code == 200
        assert states() == {"1": "UNAVAILABLE", "2": "READY"}
        assert answering_version() == 2
        client.unload_model("digits")
        assert states() == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
        assert httpx.post(f"{live.url}/predict", content=image).status_code == 404
        with pytest.raises(InferenceServerException, match="no bundle cats"):
            client.load_model("cats")
        client.load_model("digits")
        assert answering_version() == 2
        client.close()


def test_a_damaged_bundle_changes_nothing(versions: Path) -> None:
    (versions / "digits" / "2" / "model.onnx").write_bytes(b"broken")
    with live_service(ServingSettings(bundles=versions, models=("digits:1",), threads=1)) as live:
        response = httpx.post(f"{live.url}/v2/repository/models/digits/load")
        assert response.status_code == 400
        assert "sha256 differs" in response.json()["error"]
        image = read_bundle(versions / "digits" / "1").golden_inputs()[0][1]
        assert httpx.post(f"{live.url}/predict", content=image).json()["version"] == 1


def test_reloading_under_load_fails_no_request(versions: Path) -> None:
    """Two versions take turns while eight clients send requests: every answer is correct for the version that it names."""
    examples = {number: read_bundle(versions / "digits" / str(number)).golden_examples(top_k=5) for number in (1, 2)}
    images = {example.data for example in examples[1]} & {example.data for example in examples[2]}
    expected = {(n, example.data): example.expected for n in (1, 2) for example in examples[n]}
    faults: list[str] = []
    seen: set[int] = set()
    with live_service(ServingSettings(bundles=versions, models=("digits:1",), threads=1)) as live:

        def predict() -> None:
            with HttpClient(Endpoint(server="fastapi", url=live.url, metrics_url=""), "digits") as client:
                for image in images:
                    answer = predict_or_fault(client, image, 5)
                    if isinstance(answer, Prediction):
                        seen.add(answer.version)
                        fault = compare(answer, expected[answer.version, image], DEFAULT_TOLERANCE)
                    else:
                        fault = answer
                    if fault is not None:
                        faults.append(str(fault))

        def change(action: str, version: int) -> int:
            url = f"{live.url}/v2/repository/models/digits/{action}"
            return httpx.post(url, json={"parameters": {"version": version}}, timeout=30).status_code

        with Load([predict] * 8):
            for version in (2, 1) * 3:
                assert change("load", version) == 200
                assert change("unload", 3 - version) == 200
                wait_for(partial(operator.contains, seen, version))
    assert images
    assert faults == []
    assert seen == {1, 2}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (["x" * 1000, *[0] * 100], 400),  # numpy would make 100 strings of 1000 characters of it
        ([0.5] * 3072, 400),
        ([256] * 3072, 400),
        ([[]] * 600_000, 413),
    ],
)
def test_expensive_json_is_refused(live: Live, data: Any, status: int) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": data}
    answer = httpx.post(f"{live.url}/v2/models/digits_classifier/infer", json={"inputs": [tensor]}, timeout=30)
    assert answer.status_code == status


def test_numbers_that_are_too_long_are_client_errors(live: Live) -> None:
    """Python refuses to convert them."""
    long = "9" * 5000
    assert httpx.get(f"{live.url}/v2/models/digits/versions/{long}").status_code == 404
    assert httpx.get(f"{live.url}/v2/models/digits/versions/0").status_code == 404
    assert httpx.post(f"{live.url}/predict?version={long}").status_code == 400
    assert httpx.post(f"{live.url}/predict", headers={"X-Request-Timeout-Ms": long}).status_code == 400
    infer = f"{live.url}/v2/models/digits/infer"
    assert httpx.post(infer, headers={"Inference-Header-Content-Length": long}).status_code == 400
    assert httpx.post(infer, json={"inputs": [], "parameters": {"timeout": int("9" * 400)}}).status_code == 400


def test_an_infer_request_has_a_deadline_too(live: Live, digits: Bundle) -> None:
    headers = {"X-Request-Timeout-Ms": "0"}
    assert httpx.post(f"{live.url}/v2/models/digits/infer", headers=headers, json={}).status_code == 400
