"""A user's folder of few images, start to finish, by the README's commands: train, export, up, predict."""

from pathlib import Path

import pytest
from PIL import Image

from serving.clients.endpoint import SERVERS
from tests.images import encoded, gradient
from tests.workplace import processes_of, trident

pytestmark = pytest.mark.integration

COLORS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def tinted(number: int, color: tuple[int, int, int]) -> bytes:
    image = gradient(60 + 3 * number, 50 + 2 * number)
    return encoded(Image.blend(image, Image.new("RGB", image.size, color), 0.7))


def test_from_a_folder_to_answers_of_three_servers(tmp_path: Path) -> None:
    for label, color in COLORS.items():
        (tmp_path / "my_images" / label).mkdir(parents=True)
        for number in range(0, 50, 5):
            (tmp_path / "my_images" / label / f"{number}.png").write_bytes(tinted(number, color))
        (tmp_path / f"{label}.png").write_bytes(tinted(60, color))  # not among them
    trident("train", "--data", "my_images", "--epochs", "5", cwd=tmp_path, timeout=600, check=True)
    trident("export", cwd=tmp_path, timeout=300, check=True)
    try:
        trident("up", "--model", "my_images", "--free-ports", cwd=tmp_path, timeout=300, check=True)
        done = trident("predict", "red.png", "blue.png", cwd=tmp_path, check=True)
    finally:
        trident("down", cwd=tmp_path)
    lines = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("red.png", "blue.png"))]
    assert {(line[0], line[1], line[3]) for line in lines} == {
        (f"{label}.png", server, label) for label in COLORS for server in SERVERS
    }
    assert processes_of(tmp_path) == []
