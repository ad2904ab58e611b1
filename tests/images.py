"""Images for tests, made with Pillow."""

import io
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def gradient(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """A smooth image: red grows to the right, green downwards, blue is constant."""
    x = np.linspace(0, 255, width)[np.newaxis, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, np.newaxis].repeat(width, 1)
    array = np.stack([x, y, np.full_like(x, 128)], axis=2).astype(np.uint8)
    return Image.fromarray(array).convert(mode)
