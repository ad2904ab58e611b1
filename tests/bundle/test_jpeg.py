"""The short way for plain JPEGs gives the pixels that Pillow gives, or leaves the file to Pillow."""

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle import preprocess as preprocessing
from bundle.errors import TridentError
from bundle.jpeg import decode_plain_jpeg, plain_jpeg
from bundle.manifest import ImageInput
from bundle.preprocess import Pixels, is_cheap, preprocess
from tests.images import encoded, gradient

SPECS = (
    ImageInput(height=32, width=32),
    ImageInput(height=24, width=40, resize="pad", filter="bicubic"),
    ImageInput(height=28, width=28, resize="crop", shorter_side=32),
)
REPEATS = [200, pytest.param(5000, marks=pytest.mark.slow)]


def by_pillow(data: bytes, spec: ImageInput, monkeypatch: pytest.MonkeyPatch) -> Pixels | str:
    with monkeypatch.context() as patch:
        patch.setattr(preprocessing, "plain_jpeg", lambda _: None)
        return outcome(data, spec)


def outcome(data: bytes, spec: ImageInput) -> Pixels | str:
    """The pixels, or the kind of the refusal."""
    try:
        return preprocess(data, spec)
    except TridentError as error:
        return error.kind


def same(first: Pixels | str, second: Pixels | str) -> bool:
    if isinstance(first, str) or isinstance(second, str):
        return first is second or (isinstance(first, str) and first == second)
    return np.array_equal(first, second)


def random_jpeg(chance: random.Random) -> bytes:
    """A JPEG of random size, content, quality, subsampling and coding."""
    size = (chance.choice((8, 31, 32, 33, 120, 257)), chance.choice((8, 17, 32, 90, 200)))
    image = gradient(*size)
    if chance.random() < 0.5:
        noise = np.random.default_rng(chance.randrange(1000)).integers(0, 256, (size[1], size[0], 3), np.uint8)
        image = Image.blend(image, Image.fromarray(noise), chance.random())
    mode = chance.choice(("RGB", "RGB", "RGB", "L", "CMYK"))
    options: dict[str, Any] = {
        "quality": chance.randrange(5, 100),
        "subsampling": chance.randrange(3),
        "progressive": chance.random() < 0.2,
        "optimize": chance.random() < 0.3,
        "restart_marker_rows": chance.choice((0, 1)),
        "comment": b"x" * chance.choice((0, 300)),
    }
    if chance.random() < 0.15:
        exif = Image.Exif()
        exif[0x0112] = chance.randrange(1, 9)
        options["exif"] = exif
    try:
        return encoded(image.convert(mode), "JPEG", **options)
    except OSError:  # Pillow's buffer is too small for some combinations of options
        return random_jpeg(chance)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Truncated, with changed bytes, or with bytes inserted."""
    place = chance.randrange(2, len(data))
    match chance.randrange(4):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + chance.randbytes(chance.randrange(1, 5)) + data[place:]
        case 2:
            return data + chance.randbytes(20)
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 5))):
        changed[chance.randrange(2, len(changed))] = chance.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("repeats", REPEATS)
def test_both_ways_give_the_same_pixels_or_the_same_refusal(repeats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(repeats)
    short, damaged_short = 0, 0
    for _ in range(repeats):
        data, spec = random_jpeg(chance), chance.choice(SPECS)
        jpeg = plain_jpeg(data)
        short += jpeg is not None and decode_plain_jpeg(data, jpeg) is not None
        assert same(outcome(data, spec), by_pillow(data, spec, monkeypatch)), data
        for _ in range(3):
            bad = damaged(data, chance)
            jpeg = plain_jpeg(bad)
            damaged_short += jpeg is not None and decode_plain_jpeg(bad, jpeg) is not None
            assert same(outcome(bad, spec), by_pillow(bad, spec, monkeypatch)), bad
    assert short > repeats / 3  # otherwise this compares Pillow with itself
    assert damaged_short > repeats / 10


@pytest.mark.parametrize("size", [(64, 64), (65, 129), (300, 200), (1000, 700)])
@pytest.mark.parametrize("spec", SPECS)
def test_images_much_larger_than_needed(
    size: tuple[int, int], spec: ImageInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(gradient(*size), "JPEG", quality=90)
    assert plain_jpeg(data) is not None
    assert same(outcome(data, spec), by_pillow(data, spec, monkeypatch))


def test_what_is_not_plain_is_left_to_pillow() -> None:
    image = gradient(40, 30)
    assert plain_jpeg(encoded(image, "JPEG")) == (40, 30, 3)
    assert plain_jpeg(encoded(image.convert("L"), "JPEG")) == (40, 30, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (
        encoded(image, "JPEG", progressive=True),
        encoded(image, "JPEG", exif=exif),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(Image.new("L", (2500, 2500)), "JPEG"),  # too large
        encoded(image),
        b"",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0",
    ):
        assert plain_jpeg(data) is None


def test_cheap_images_are_small_in_bytes_and_pixels() -> None:
    assert is_cheap(encoded(gradient(32, 32)))
    assert is_cheap(encoded(gradient(200, 200), "JPEG"))
    assert not is_cheap(encoded(Image.new("L", (3000, 3000))))  # few bytes, many pixels
    assert not is_cheap(encoded(Image.new("L", (900, 900)), "JPEG"))
    assert not is_cheap(encoded(gradient(32, 32), "WEBP"))
    assert not is_cheap(bytes(50_000))


def test_the_switch_leaves_everything_to_pillow() -> None:
    """As a process reads it: at import."""
    import subprocess
    import sys

    data = io.BytesIO(encoded(gradient(40, 30), "JPEG")).getvalue()
    code = f"from bundle.jpeg import plain_jpeg; print(plain_jpeg({data!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"_TRIDENT_DECODER": "pillow"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None"
