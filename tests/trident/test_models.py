"""A published ImageNet model and a model of a user's own images, by the README's commands: import, train, export, up,
predict. Both run behind the same three servers, which are stopped under load in the end.
"""

import base64
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image

from serving.clients.dialect import dialect_of
from serving.clients.endpoint import SERVERS
from serving.stack.control import stop_stack
from tests.bursts import in_flight, unread
from tests.images import encoded, gradient
from tests.waiting import wait_until
from tests.workplace import Run, endpoint_of, now, processes_of, trident

pytestmark = pytest.mark.integration
COLORS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a photograph of a cup of coffee, images in two colours, and both models on three servers."""
    from training.pretrained import photographs

    folder = tmp_path_factory.mktemp("models")
    (folder / "coffee.png").write_bytes(dict(photographs())["coffee.png"])
    for label, color in COLORS.items():
        (folder / "my_images" / label).mkdir(parents=True)
        for number in range(0, 50, 5):
            (folder / "my_images" / label / f"{number}.png").write_bytes(tinted(number, color))
        (folder / f"{label}.png").write_bytes(tinted(60, color))  # not among them
    trident("import", "efficientnet_lite0", cwd=folder, check=True)
    trident("train", "--data", "my_images", "--epochs", "3", "--image-size", "96", cwd=folder, timeout=600, check=True)
    trident("export", cwd=folder, timeout=300, check=True)
    models = ("--model", "efficientnet_lite0", "--model", "my_images")
    trident("up", *models, "--free-ports", cwd=folder, timeout=300, check=True)
    yield folder
    trident("down", cwd=folder, check=True)
    assert processes_of(folder) == []


def tinted(number: int, color: tuple[int, int, int]) -> bytes:
    image = gradient(60 + 3 * number, 50 + 2 * number)
    return encoded(Image.blend(image, Image.new("RGB", image.size, color), 0.7))


def curl(*arguments: str, cwd: Path) -> list[tuple[str, float]]:
    done = subprocess.run(["curl", "-sS", "--fail-with-body", *arguments], cwd=cwd, capture_output=True, check=True)
    return [(entry["label"], entry["probability"]) for entry in json.loads(done.stdout)["predictions"]]


def test_curl_in_three_forms(folder: Path) -> None:
    address = f"{endpoint_of(now(folder), 'fastapi').url}/predict"
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


def test_predict_shows_espresso_from_all_three(folder: Path, run: Run) -> None:
    code, shown = run("predict", "coffee.png", cwd=folder)
    assert code == 0, shown
    lines = [line.split() for line in shown.splitlines() if line.strip().startswith("coffee.png")]
    assert [line[1] for line in lines] == list(SERVERS)
    assert {line[3] for line in lines} == {"espresso"}


def test_predict_knows_the_user_s_own_classes(folder: Path, run: Run) -> None:
    code, shown = run("predict", "red.png", "blue.png", "--model", "my_images", cwd=folder)
    assert code == 0, shown
    lines = [line.split() for line in shown.splitlines() if line.strip().startswith(("red.png", "blue.png"))]
    assert {(line[0], line[1], line[3]) for line in lines} == {
        (f"{label}.png", server, label) for label in COLORS for server in SERVERS
    }


def test_verify_is_green(folder: Path, run: Run) -> None:
    code, shown = run("verify", cwd=folder)
    assert code == 0, shown


def test_accepted_requests_are_answered_when_the_stack_is_stopped(folder: Path) -> None:
    """TorchServe by itself cuts off what waits and what runs; it gets more than fits into a batch."""
    image = (folder / "coffee.png").read_bytes()
    endpoints = now(folder).endpoints()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(endpoints)))
        requested = []
        for endpoint in endpoints:
            wire = dialect_of(endpoint.server).http("efficientnet_lite0", 1)
            requests = [wire.request(image)] * (24 if endpoint.server == "torchserve" else 8)
            answers = stack.enter_context(in_flight(endpoint.url, requests))
            requested.append((endpoint.server, wire, pool.submit(answers)))
        wait_until(lambda: not any(unread(endpoint.url) for endpoint in endpoints), pause_s=0.001)
        assert not all(answered.done() for _, _, answered in requested)
        assert stop_stack(folder / "artifacts" / "stack")
        for server, wire, answered in requested:
            for answer in answered.result():
                assert answer.code == 200, (server, answer)
                top = wire.prediction(200, answer.headers, answer.body).top
                assert (top.label, round(top.probability, 2)) == ("espresso", 0.95)
