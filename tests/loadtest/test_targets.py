"""Lanes, their names, and the check of every answer."""

import json

import pytest

from bundle.store import Bundle
from loadtest.errors import TargetError
from loadtest.lanes.ceiling import CeilingSpec
from loadtest.lanes.lane import AnswerCheck, Question
from loadtest.lanes.lineup import Served, lineup_of, named, only, parse_inputs, parse_target
from loadtest.lanes.tensor_wire import TensorWire
from serving.clients.endpoint import Endpoint
from serving.clients.fastapi import FastapiWire
from tests.loadtest.lab import target


def test_lanes_are_named_by_what_differs(digits: Bundle) -> None:
    fastapi = Endpoint(server="fastapi", url="http://127.0.0.1:1", metrics_url="")
    triton = Endpoint(server="triton", url="http://127.0.0.1:2", grpc="127.0.0.1:3", metrics_url="")
    serving = {"runtime": "onnxruntime", "precision": "fp32", "device": "cpu", "cores": [0], "workers": 2, "threads": 1}
    one = [
        Served(fastapi, {**serving, "max_batch_size": 8}, (11,)),
        Served(triton, {**serving, "max_batch_size": 4}, (12,)),
    ]
    two = Served(fastapi, {**serving, "runtime": "torchscript", "max_batch_size": 8}, (13,))
    lineup = lineup_of(one, digits, [], ("http", "grpc"), ("image", "tensor"))
    assert [lane.lane for lane in lineup.targets] == [
        "fastapi", "fastapi tensor", "triton", "triton grpc", "triton tensor"
    ]  # fmt: skip
    ceiling = CeilingSpec(runtime="onnxruntime", precision="fp32", threads=1, workers=2, max_batch_size=8, cores=(0,))
    smaller = ceiling.model_copy(update={"max_batch_size": 4})
    assert lineup.ceilings == {"fastapi": ceiling, "triton": smaller, "triton grpc": smaller}  # which decode
    assert {lane.server_process for lane in lineup.targets} == {"fastapi, pid 11", "triton, pid 12"}
    some = only(lineup, ["triton grpc", "fastapi tensor"])
    assert [lane.lane for lane in some.targets] == ["fastapi tensor", "triton grpc"]
    assert (set(some.serving), set(some.ceilings)) == ({"fastapi tensor", "triton grpc"}, {"triton grpc"})
    with pytest.raises(TargetError, match="no lane torchserve; there are fastapi, fastapi tensor"):
        only(lineup, ["fastapi", "torchserve"])
    mine = target("mine", dialect="image", server="another server", path="/predict")
    both = lineup_of([*one, two], digits, [mine])
    assert [lane.lane for lane in both.targets] == [
        "fastapi onnxruntime", "triton onnxruntime", "fastapi torchscript", "mine"
    ]  # fmt: skip
    with pytest.raises(TargetError, match="two targets"):
        named([mine, mine])
    with pytest.raises(TargetError, match="no lane"):
        lineup_of([Served(fastapi)], digits, [], ("grpc",))


@pytest.mark.parametrize("entry", ["http://127.0.0.1:1", "mine=127.0.0.1:1", "mine=http://127.0.0.1:1/v2/models/x"])
def test_a_target_is_a_name_and_an_address(entry: str, digits: Bundle) -> None:
    with pytest.raises(TargetError, match="--target"):
        parse_target(entry, digits)


def test_targets_are_told_apart_by_their_path(digits: Bundle) -> None:
    mine = parse_target("mine=http://127.0.0.1:1/v1/classify/", digits)
    assert (mine.lane, mine.dialect, mine.url, mine.path) == ("mine", "image", "http://127.0.0.1:1", "/v1/classify")
    assert parse_target("mine=http://127.0.0.1:1", digits).path == "/predict"
    with pytest.raises(TargetError, match="image and tensor"):
        parse_inputs("image,video")


# --- answers


def test_every_answer_is_checked(digits: Bundle) -> None:
    wire = FastapiWire("digits", 1)
    question = Question.all_of(digits, wire)[0]
    check = AnswerCheck(wire)

    def body(class_id: int, probability: float) -> bytes:
        entry = {"label": str(class_id), "class_id": class_id, "probability": probability}
        return json.dumps({"model": "digits", "version": 1, "predictions": [entry]}).encode()

    right = body(question.class_id, question.probability)
    for _ in range(2):  # the second time it is recognised
        assert check.fault(question, 200, dict, right) == ""
    other = body((question.class_id + 1) % 10, question.probability)
    assert "wrong answer" in check.fault(question, 200, dict, other)
    assert "wrong answer" in check.fault(question, 200, dict, body(question.class_id, question.probability - 0.01))
    assert "HTTP 500" in check.fault(question, 500, dict, right)
    assert "not a prediction" in check.fault(question, 200, dict, b"{}")
    nothing = b'{"model": "digits", "version": 1, "predictions": []}'
    assert "wrong answer" in check.fault(question, 200, dict, nothing)


def test_pixels_are_the_images(digits: Bundle) -> None:
    wire = TensorWire("/v2/models/digits_classifier", digits.manifest)
    question = Question.all_of(digits, wire)[0]
    head = int(question.request.headers["inference-header-content-length"])
    assert json.loads(question.request.body[:head])["inputs"][0]["shape"] == [1, 3, 32, 32]
    assert len(question.request.body) == head + 3 * 32 * 32
    probabilities = digits.golden_probabilities()[0].astype("<f4").tobytes()
    headers = {"inference-header-content-length": "2"}
    check = AnswerCheck(wire)
    assert check.fault(question, 200, lambda: headers, b"{}" + probabilities) == ""
    assert "instead of 10" in check.fault(question, 200, lambda: headers, b"{}" + probabilities[:-4])
    assert "HTTP 400" in check.fault(question, 400, dict, b"no")
