"""A real ImageNet model: a photograph of a cup of coffee is an espresso, for all three servers."""

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.clients.dialect import dialect_of
from serving.clients.endpoint import SERVERS
from serving.stack.control import current_stack, stop_stack
from tests.bursts import in_flight, unread
from tests.terminal import documented_curls, typed
from tests.workplace import now, processes_of, trident

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the imported model behind three running servers, and the photograph."""
    from training.pretrained import photographs

    folder = tmp_path_factory.mktemp("coffee")
    (folder / "coffee.png").write_bytes(dict(photographs())["coffee.png"])
    trident("import", "efficientnet_lite0", cwd=folder, check=True)
    trident("up", "--free-ports", cwd=folder, check=True)
    yield folder
    trident("down", cwd=folder, check=True)
    assert processes_of(folder) == []


def curl(*arguments: str, cwd: Path) -> list[tuple[str, float]]:
    done = subprocess.run(["curl", "-sS", "--fail-with-body", *arguments], cwd=cwd, capture_output=True, check=True)
    return [(entry["label"], entry["probability"]) for entry in json.loads(done.stdout)["predictions"]]


def test_curl_in_three_forms(folder: Path) -> None:
    state = current_stack(folder / "artifacts" / "stack")
    assert state is not None
    endpoint = state.servers["fastapi"].endpoint
    assert endpoint is not None
    address = f"{endpoint.url}/predict"
    image = (folder / "coffee.png").read_bytes()
    (folder / "coffee.json").write_text(json.dumps({"image_b64": base64.b64encode(image).decode()}))
    answers = [
        curl("-F", "file=@coffee.png", address, cwd=folder),
        curl("--data-binary", "@coffee.png", "-H", "Content-Type: image/png", address, cwd=folder),
        curl("--data-binary", "@coffee.json", "-H", "Content-Type: application/json", address, cwd=folder),
    ]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0][0] == "espresso"
    assert answers[0][0][1] > 0.8


@pytest.mark.parametrize("command", documented_curls("README.md", "coffee.png"))
def test_the_curl_of_the_readme_shows_an_espresso_on_a_terminal(folder: Path, command: str) -> None:
    code, shown = typed(command, now(folder), folder)
    assert code == 0, shown
    assert '"predictions":[{"label":"espresso"' in shown


def test_predict_shows_espresso_from_all_three(folder: Path) -> None:
    done = trident("predict", "coffee.png", cwd=folder, check=True)
    lines = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("coffee.png")]
    assert [line[1] for line in lines] == list(SERVERS)
    assert {line[3] for line in lines} == {"espresso"}


def test_verify(folder: Path) -> None:
    assert trident("verify", cwd=folder).returncode == 0


def test_what_was_taken_is_answered_when_the_stack_is_stopped(folder: Path) -> None:
    """TorchServe by itself cuts off what waits and what runs; it gets more than fits into a batch."""
    image = (folder / "coffee.png").read_bytes()
    endpoints = now(folder).endpoints()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(endpoints)))
        asked = []
        for endpoint in endpoints:
            wire = dialect_of(endpoint.server).http("efficientnet_lite0", 1)
            requests = [wire.request(image)] * (24 if endpoint.server == "torchserve" else 8)
            answers = stack.enter_context(in_flight(endpoint.url, requests))
            asked.append((endpoint.server, wire, pool.submit(answers)))
        while any(unread(endpoint.url) for endpoint in endpoints):
            time.sleep(0.001)
        stopped = time.monotonic()
        assert stop_stack(folder / "artifacts" / "stack")
        for server, wire, answered in asked:
            for answer in answered.result():
                assert answer.code == 200, (server, answer)
                top = wire.prediction(200, answer.headers, answer.body).top
                assert (top.label, round(top.probability, 2)) == ("espresso", 0.95)
            if server == "torchserve":
                assert max(answer.came for answer in answered.result()) > stopped
