"""The requests of `trident deploy --live`, to fake servers."""

import time
from typing import Any

import pytest

from bundle.store import Bundle
from serving.clients import traffic as module
from serving.clients.endpoint import Endpoint
from serving.clients.traffic import Traffic, TrafficRecord, TrafficRequest
from tests.serving.golden_client import FakeClient, golden_answer
from trident.console.output import console
from trident.console.rollout import _show_traffic


class OtherImages(Bundle):
    """Has its own golden images: none of those that are sent."""

    def golden_inputs(self) -> list[tuple[str, bytes]]:
        return [(name, data + b"another") for name, data in super().golden_inputs()]


@pytest.mark.parametrize(
    ("answered_by", "wrong", "found"),
    [(1, False, "right"), (1, True, "wrong"), (2, False, "unchecked"), (3, False, "wrong")],
)
def test_an_answer_is_right_wrong_or_unchecked(
    answered_by: int,
    wrong: bool,
    found: str,
    digits: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = digits.manifest
    answering = Bundle(digits.path, manifest.model_copy(update={"version": answered_by}))
    other = OtherImages(digits.path, manifest.model_copy(update={"version": 2}))

    def connect(*_: Any, **__: Any) -> FakeClient:
        return FakeClient(lambda image, top_k: golden_answer(answering, image, top_k, wrong=wrong))

    monkeypatch.setattr(module, "connect", connect)
    endpoint = Endpoint(server="fastapi", url="fastapi", metrics_url="fastapi")
    with Traffic(endpoint, [digits, other], 1e-4, clients=1, pause_s=0.001) as traffic:
        while not traffic.record.requests:
            time.sleep(0.001)
    record = traffic.record
    count = len(record.requests)
    assert (len(record.failed), len(record.wrong), len(record.unchecked)) == (
        0,
        count if found == "wrong" else 0,
        count if found == "unchecked" else 0,
    )


def test_what_was_not_checked_is_shown_if_there_is_any(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "width", 200)
    checked, unchecked = TrafficRequest(0, 1, 1), TrafficRequest(0, 1, 2, unchecked=True)
    assert _show_traffic({"fastapi http": TrafficRecord([checked])})
    assert "unchecked" not in capsys.readouterr().out
    assert _show_traffic(
        {"fastapi http": TrafficRecord([checked]), "triton http": TrafficRecord([checked, *[unchecked] * 3])}
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:5] == ["lane", "requests", "failed", "wrong", "unchecked"]
    assert lines[-1][0] == "unchecked:"
    assert [line[:6] for line in lines[1:-1]] == [
        ["fastapi", "http", "1", "0", "0", "0"],
        ["triton", "http", "4", "0", "0", "3"],
    ]
