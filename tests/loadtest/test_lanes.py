"""Lanes, their names, and the check of every answer."""

import json
from dataclasses import replace
from typing import Any

import pytest

from bundle.golden import Fault
from bundle.postprocess import answer
from bundle.schemas import Prediction
from bundle.store import Bundle
from loadtest.errors import LoadtestError, TargetError
from loadtest.lanes.ceiling import CeilingSpec, ceiling_loops
from loadtest.lanes.golden_requests import AnswerCheck, golden_requests
from loadtest.lanes.lane import Lane
from loadtest.lanes.lineup import (
    ServerUnderTest,
    answer_tolerance,
    lineup_of,
    named,
    parse_inputs,
    select_lanes,
)
from loadtest.lanes.third_party import parse_target
from loadtest.lanes.wires import JsonWire
from serving.clients.endpoint import Endpoint
from serving.clients.http_wire import GarbledError
from tests.loadtest.lab import lane


def test_lanes_are_named_by_what_differs(digits: Bundle) -> None:
    fastapi = Endpoint(server="fastapi", url="http://127.0.0.1:1", metrics_url="")
    triton = Endpoint(server="triton", url="http://127.0.0.1:2", grpc="127.0.0.1:3", metrics_url="")
    serving = {"runtime": "onnxruntime", "precision": "fp32", "device": "cpu", "cores": [0], "workers": 2, "threads": 1}
    one = [
        ServerUnderTest(fastapi, {**serving, "max_batch_size": 8}, (11,)),
        ServerUnderTest(triton, {**serving, "max_batch_size": 4, "triton_home": None}, (12,)),
    ]
    two = ServerUnderTest(fastapi, {**serving, "runtime": "torchscript", "max_batch_size": 8}, (13,))
    lineup = lineup_of(one, digits, [], ("http", "grpc"), ("image", "tensor"))
    assert [lane.name for lane in lineup.lanes] == [
        "fastapi",
        "fastapi tensor",
        "triton (python backend)",
        "triton (python backend) grpc",
        "triton (python backend) tensor",
    ]
    ceiling = CeilingSpec(runtime="onnxruntime", precision="fp32", threads=1, workers=2, max_batch_size=8, cores=(0,))
    smaller = ceiling.model_copy(update={"max_batch_size": 4})
    wheel = "triton (python backend)"
    assert lineup.ceilings == {"fastapi": ceiling, wheel: smaller, f"{wheel} grpc": smaller}  # the lanes that decode
    assert {lane.server_process for lane in lineup.lanes} == {"fastapi, pid 11", "triton, pid 12"}
    some = select_lanes(lineup, ["triton grpc", "fastapi tensor"])
    assert [lane.name for lane in some.lanes] == ["fastapi tensor", f"{wheel} grpc"]
    assert (set(some.serving), set(some.ceilings)) == ({"fastapi tensor", f"{wheel} grpc"}, {f"{wheel} grpc"})
    with pytest.raises(TargetError, match="no lane torchserve; known lanes: fastapi, fastapi tensor"):
        select_lanes(lineup, ["fastapi", "torchserve"])
    mine = lane("mine", dialect="image", server="third party", path="/predict")
    both = lineup_of([*one, two], digits, [mine])
    assert [lane.name for lane in both.lanes] == [
        "fastapi onnxruntime",
        "triton (python backend) onnxruntime",
        "fastapi torchscript",
        "mine",
    ]
    with pytest.raises(TargetError, match="two lanes"):
        named([mine, mine])
    with pytest.raises(TargetError, match="no lane"):
        lineup_of([ServerUnderTest(fastapi)], digits, [], ("grpc",))


def test_the_tolerance_is_the_manifests(digits: Bundle) -> None:
    manifest = digits.manifest
    looser = manifest.artefacts[0].model_copy(update={"format": "onnx", "precision": "int8", "tolerance": 0.2})
    manifest = manifest.model_copy(update={"artefacts": (*manifest.artefacts, looser)})
    fp32 = digits.artefact("onnx").tolerance
    assert answer_tolerance(manifest, "onnxruntime", "int8") == 0.2
    assert answer_tolerance(manifest, "onnxruntime", "fp32") == fp32
    assert answer_tolerance(manifest) == fp32


@pytest.mark.parametrize("entry", ["http://127.0.0.1:1", "mine=127.0.0.1:1", "mine=http://127.0.0.1:1/v2/models/x"])
def test_a_target_is_a_name_and_an_address(entry: str, digits: Bundle) -> None:
    with pytest.raises(TargetError, match="--target"):
        parse_target(entry, digits)


def test_the_path_of_a_target_selects_its_dialect(digits: Bundle) -> None:
    mine = parse_target("mine=http://127.0.0.1:1/v1/classify/", digits)
    assert (mine.name, mine.dialect, mine.url, mine.path) == ("mine", "image", "http://127.0.0.1:1", "/v1/classify")
    assert parse_target("mine=http://127.0.0.1:1", digits).path == "/predict"
    with pytest.raises(TargetError, match="image and tensor"):
        parse_inputs("image,video")


# --- answers


def checked(lane: Lane, digits: Bundle) -> tuple[Any, dict[str, Any]]:
    """A function from a response to its fault, and the golden answer as a JSON object."""
    golden = golden_requests(lane, digits)[0]
    check = AnswerCheck(lane.wire(digits.manifest), lane.tolerance)
    content = answer(golden.expected.probabilities, "digits", 1, digits.manifest.labels, 5)

    def fault(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Fault | None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return check.fault(golden, status, lambda: headers or {}, data)

    return fault, content


def test_every_answer_is_checked(digits: Bundle) -> None:
    fault, golden = checked(lane(), digits)
    for _ in range(2):  # the second time it is recognised by its bytes
        assert fault(golden) is None
    top, *others = golden["predictions"]
    assert fault(golden | {"predictions": golden["predictions"][:4]}).kind == "probabilities"
    assert fault(golden | {"predictions": []}).kind == "probabilities"
    assert fault(golden | {"predictions": [top | {"probability": top["probability"] - 0.01}, *others]}) is not None
    assert fault(golden | {"predictions": [top | {"label": "x"}, *others]}).kind == "labels"
    assert fault(golden | {"version": 2}).kind == "version"
    assert "HTTP 500" in fault(golden, status=500).message
    assert fault({}).kind == "no-answer"


def test_a_third_party_names_its_model_and_labels_and_chooses_how_many_classes(digits: Bundle) -> None:
    fault, golden = checked(lane(dialect="image", path="/classify"), digits)
    named = [entry | {"label": f"digit {entry['label']}"} for entry in golden["predictions"]]
    for count in (1, 3, 5):
        assert fault({"model": "mine", "version": 7, "predictions": named[:count]}) is None
    wrong = [named[0] | {"class_id": (named[0]["class_id"] + 1) % 10}]
    assert fault({"model": "mine", "version": 7, "predictions": wrong}).kind == "probabilities"
    assert fault({"model": "mine", "version": 7, "predictions": []}).kind == "probabilities"


def test_a_lower_precision_is_checked_with_its_own_tolerance(digits: Bundle) -> None:
    for tolerance, accepted in ((1e-4, False), (0.05, True)):
        fault, golden = checked(lane(tolerance=tolerance), digits)
        top, *others = golden["predictions"]
        near = top | {"probability": top["probability"] - 0.02}
        assert (fault(golden | {"predictions": [near, *others]}) is None) == accepted


def test_the_null_target_has_one_answer() -> None:
    null = lane(dialect="null", tolerance=0.0)
    (golden,) = golden_requests(null, None)
    check = AnswerCheck(null.wire(None), null.tolerance)
    body = b'{"model":"null","version":1,"predictions":[{"label":"0","class_id":%d,"probability":1.0}]}'
    assert check.fault(golden, 200, dict, body % 0) is None
    assert check.fault(golden, 200, dict, body % 1) is not None


def test_a_tensor_lane_sends_the_pixels_of_the_image(digits: Bundle) -> None:
    tensor = lane(dialect="tensor", path="/v2/models/digits_classifier")
    golden = golden_requests(tensor, digits)[0]
    head = int(golden.request.headers["inference-header-content-length"])
    assert json.loads(golden.request.body[:head])["inputs"][0]["shape"] == [1, 3, 32, 32]
    assert len(golden.request.body) == head + 3 * 32 * 32
    probabilities = digits.golden_probabilities()[0].astype("<f4").tobytes()
    headers = {"inference-header-content-length": "2"}
    fault, _ = checked(tensor, digits)
    assert fault(b"{}" + probabilities, headers=headers) is None
    assert "instead of 10" in fault(b"{}" + probabilities[:-4], headers=headers).message
    assert "HTTP 400" in fault(b"no", status=400).message


@pytest.mark.parametrize("dialect", ["json", "json-batch"])
def test_images_in_base64(dialect: str, digits: Bundle) -> None:
    fault, golden = checked(lane(dialect=dialect, path="/predict", input_name="image_data"), digits)
    batch = dialect == "json-batch"
    request = JsonWire("/predict", "image_data", batch).request(b"abc")
    assert json.loads(request.body) == {"image_data": ["YWJj"] if batch else "YWJj"}
    assert fault([golden] if batch else golden) is None
    assert fault(golden if batch else [golden]).kind == "no-answer"
    assert "HTTP 503" in fault(b"busy", status=503).message
    with pytest.raises(GarbledError):
        JsonWire("/predict", "x", batch=True).prediction(200, {}, b"[]")


def test_answers_are_predictions(digits: Bundle) -> None:
    _, golden = checked(lane(), digits)
    assert Prediction.model_validate(golden).top.class_id == int(digits.golden_probabilities()[0].argmax())


# --- the ceiling


def test_the_ceiling_is_measured_as_often_as_it_is_requested(digits: Bundle) -> None:
    spec = CeilingSpec(runtime="onnxruntime", precision="fp32", threads=1, workers=2)
    with ceiling_loops(spec, digits) as measure:
        rates = [measure(0.2), measure(0.2)]
    for rate in rates:
        assert rate.single > 50
        assert rate.batched > 50


def test_a_ceiling_that_fails_reports_why(digits: Bundle, tmp_path: Any) -> None:
    spec = CeilingSpec(runtime="onnxruntime", precision="fp32", threads=1)
    broken = replace(digits, path=tmp_path)
    with pytest.raises(LoadtestError, match=r"the ceiling failed: (.|\n)*manifest"), ceiling_loops(spec, broken):
        pass


def test_on_a_gpu_the_cores_decode_for_the_ceiling(digits: Bundle) -> None:
    fastapi = Endpoint(server="fastapi", url="http://127.0.0.1:1", metrics_url="")
    serving = {
        "runtime": "torchscript",
        "precision": "bf16",
        "threads": 1,
        "max_batch_size": 32,
        "cores": list(range(12)),
    }
    on_gpu = serving | {"device": "cuda", "workers": 2}
    spec = ServerUnderTest(fastapi, on_gpu).ceiling()
    assert spec is not None
    assert (spec.device, spec.workers, spec.decoders) == ("cuda", 2, 5)
    on_cpu = ServerUnderTest(fastapi, on_gpu | {"device": "cpu"}).ceiling()
    assert on_cpu is not None
    assert on_cpu.decoders == 0
    assert ServerUnderTest(fastapi).ceiling() is None


def test_the_ceiling_with_decoder_threads(digits: Bundle) -> None:
    spec = CeilingSpec(runtime="torchscript", precision="fp32", threads=1, max_batch_size=4, decoders=2)
    with ceiling_loops(spec, digits) as measure:
        rates = [measure(0.2), measure(0.2)]
    assert all(rate.batched > 50 for rate in rates)
