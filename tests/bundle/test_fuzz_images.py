"""Damaged images of every format that Pillow writes: never a 500, never a hang, never a service that is gone."""

import io
import random

import httpx
import pytest
from PIL import Image

from bundle.store import Bundle
from serving.settings import ServingSettings
from tests.serving.fastapi_server.live_service import live_service

DAMAGED = 20  # of each kind and format


def formats() -> list[str]:
    Image.init()
    return sorted(Image.SAVE)


def encoded(name: str) -> bytes:
    """An image in this format; b"" if this Pillow cannot write it."""
    gradient = Image.linear_gradient("L").resize((48, 48))
    for mode in ("RGB", "L", "1", "P"):
        buffer = io.BytesIO()
        try:
            gradient.convert(mode).save(buffer, name)
        except Exception:
            continue
        return buffer.getvalue()
    return b""


def damaged(data: bytes, random_: random.Random) -> bytes:
    """Cut off, with bits flipped, or with a stretch overwritten."""
    kind = random_.randrange(3)
    if kind == 0:
        return data[: random_.randrange(len(data))]
    changed = bytearray(data)
    if kind == 1:
        for _ in range(random_.randint(1, 8)):
            changed[random_.randrange(min(len(data), 512))] ^= 1 << random_.randrange(8)
    else:
        start = random_.randrange(len(data))
        changed[start : start + 16] = random_.randbytes(16)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it reads
def test_damaged_images_affect_no_other_request(settings: ServingSettings, digits: Bundle) -> None:
    random_ = random.Random(0)
    images = {name: data for name in formats() if (data := encoded(name))}
    assert {"JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"} <= set(images)
    good = digits.golden_inputs()[0][1]
    with live_service(settings) as live, httpx.Client(base_url=live.url, timeout=20) as client:
        expected = client.post("/predict", content=good).json()
        for name, data in images.items():
            for _ in range(DAMAGED):
                body = damaged(data, random_)
                answer = client.post("/predict", content=body)
                assert answer.status_code in (200, 400, 413, 415, 422), (name, body.hex(), answer.text)
            assert client.post("/predict", content=good).json() == expected, name
