"""Clients against a small server with canned answers."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bundle.manifest import DEFAULT_TOLERANCE
from bundle.postprocess import answer
from bundle.preprocess import preprocess
from bundle.store import Bundle
from serving.clients.client import UnreachableError
from serving.clients.endpoint import Endpoint
from serving.clients.fastapi import FastapiWire
from serving.clients.golden import check_golden
from serving.clients.http_client import HttpClient, parse_server_timing
from serving.clients.http_wire import GarbledError, RefusedError
from serving.clients.torchserve import TorchserveWire
from serving.clients.triton import TritonWire
from serving.runtimes import open_runtime
from serving.settings import ServingSettings
from serving.verify.checks import verify

Respond = Callable[[bytes], tuple[int, bytes]]


@pytest.fixture
def serve() -> Iterator[Callable[[Respond], Endpoint]]:
    """Start a server that speaks FastAPI's protocol, with the given function as its model."""
    servers: list[ThreadingHTTPServer] = []

    def start(respond: Respond) -> Endpoint:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status, body = respond(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Server-Timing", "decode;dur=1.5, total;dur=2")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        return Endpoint(server="fastapi", url=url, metrics_url=f"{url}/metrics")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def model(bundle: Bundle, **changes: Any) -> Respond:
    """A server that is right, but for the `changes`."""
    runtime = open_runtime(bundle, "onnxruntime", "fp32", "cpu", 1)
    manifest = bundle.manifest
    labels = changes.get("labels", manifest.labels)
    version = changes.get("version", manifest.version)

    def respond(image: bytes) -> tuple[int, bytes]:
        try:
            pixels = preprocess(image, changes.get("input", manifest.input))
        except Exception as error:
            return changes.get("error_status", 422), json.dumps({"detail": str(error)}).encode()
        row = runtime.infer(pixels[None])[0]
        return 200, json.dumps(answer(row, manifest.model, version, labels, changes.get("top_k", len(labels)))).encode()

    return respond


def test_requests_carry_the_same_bytes() -> None:
    fastapi, torchserve, triton = (
        wire("m", 2).request(b"image", 3) for wire in (FastapiWire, TorchserveWire, TritonWire)
    )
    assert fastapi.body == torchserve.body == triton.body == b"image"
    assert fastapi.path == "/predict?model=m&version=2"
    assert torchserve.path == "/predictions/m/2"
    assert triton.path == "/v2/models/m_v2/infer"
    assert {request.headers["x-top-k"] for request in (fastapi, torchserve, triton)} == {"3"}
    assert {request.headers["content-type"] for request in (fastapi, torchserve, triton)} == {
        "application/octet-stream"
    }


PREDICTION = b'{"model":"m","version":2,"predictions":[{"label":"a","class_id":0,"probability":0.5}]}'


def test_triton_wraps_the_answer_in_a_tensor() -> None:
    header = b'{"model_name":"m"}'
    body = header + len(PREDICTION).to_bytes(4, "little") + PREDICTION
    answered = TritonWire("m").prediction(200, {"inference-header-content-length": str(len(header))}, body)
    assert answered.top.label == "a"


@pytest.mark.parametrize("wire", [FastapiWire("m"), TorchserveWire("m"), TritonWire("m")])
def test_refusals_keep_their_reason(wire: FastapiWire | TorchserveWire | TritonWire) -> None:
    for body in (b'{"detail": "too big"}', b'{"error": "too big"}', b'{"code": 413, "message": "too big"}', b"too big"):
        with pytest.raises(RefusedError, match="HTTP 413: too big") as caught:
            wire.prediction(413, {}, body)
        assert caught.value.code == 413
    with pytest.raises(GarbledError):
        wire.prediction(200, {}, b"<html>")


def test_parity(serve: Callable[[Respond], Endpoint], digits: Bundle) -> None:
    with HttpClient(serve(model(digits)), "digits") as client:
        result = check_golden(client, digits, DEFAULT_TOLERANCE)
        assert result.agrees
        assert result.max_abs_difference is not None
        assert result.max_abs_difference < 1e-5
        assert client.ask(digits.golden_inputs()[0][1]).server_timing == {"decode": 0.0015, "total": 0.002}


def test_other_weights_are_found(serve: Callable[[Respond], Endpoint], digits: Bundle, other_weights: Bundle) -> None:
    with HttpClient(serve(model(other_weights)), "digits") as client:
        result = check_golden(client, digits, DEFAULT_TOLERANCE)
    assert len(result.faults) == len(digits.golden_inputs())
    assert "golden/00.png: probabilities differ" in result.summary


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"labels": tuple("abcdefghij")}, "labelled"),
        ({"top_k": 9}, "9 classes instead of 10"),
        ({"version": 2}, "digits:2 instead of digits:1"),
    ],
)
def test_other_answers_are_found(
    serve: Callable[[Respond], Endpoint], digits: Bundle, change: dict[str, Any], fault: str
) -> None:
    with HttpClient(serve(model(digits, **change)), "digits") as client:
        assert fault in check_golden(client, digits, DEFAULT_TOLERANCE).summary


def test_another_preprocessing_is_found(serve: Callable[[Respond], Endpoint], digits: Bundle) -> None:
    nearest = digits.manifest.input.model_copy(update={"filter": "nearest"})
    with HttpClient(serve(model(digits, input=nearest)), "digits") as client:
        assert not check_golden(client, digits, DEFAULT_TOLERANCE).agrees


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_verify_finds_a_server_that_answers_by_another_version(
    serve: Callable[[Respond], Endpoint], digits: Bundle
) -> None:
    checks = {
        check.name: check.passed for check in verify(serve(model(digits, version=2)), "http", digits, ServingSettings())
    }
    assert checks["golden probabilities"]
    assert checks["labels"]
    assert checks["version"] is False
    assert checks["default version"] is False


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_verify_finds_errors_that_are_not_the_clients(serve: Callable[[Respond], Endpoint], digits: Bundle) -> None:
    checks = {
        check.name: check.passed
        for check in verify(serve(model(digits, error_status=500)), "http", digits, ServingSettings())
    }
    broken = ("truncated image", "corrupt image", "not an image", "empty body", "too many pixels")
    assert [checks[name] for name in broken] == [False] * len(broken)
    assert checks["golden answers again"]


def test_verify_of_a_server_that_always_says_the_same(serve: Callable[[Respond], Endpoint], digits: Bundle) -> None:
    checks = verify(serve(lambda _: (200, PREDICTION)), "http", digits, ServingSettings())
    assert {check.passed for check in checks if "golden" in check.name or "image" in check.name} == {False}


def test_an_address_without_a_server(digits: Bundle) -> None:
    endpoint = Endpoint(server="triton", url="http://127.0.0.1:9", metrics_url="")
    with HttpClient(endpoint, "digits") as client, pytest.raises(UnreachableError, match="triton at"):
        client.predict(b"x")


def test_server_timing_is_in_seconds() -> None:
    assert parse_server_timing("decode;dur=1, miss, total;dur=2.5") == {"decode": 0.001, "total": 0.0025}
    assert parse_server_timing("") == {}
