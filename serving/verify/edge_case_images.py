"""Images that break servers tested only with photographs; generated here, deterministic and small."""

import io

import numpy as np
from PIL import ExifTags, Image

_WIDTH, _HEIGHT = 96, 64


def edge_case_images() -> dict[str, bytes]:
    """Encoded images by name."""
    image = _scene(_WIDTH, _HEIGHT)
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.linspace(0, 255, _WIDTH * _HEIGHT).reshape(_HEIGHT, _WIDTH).astype(np.uint8)))
    gray = np.asarray(image.convert("L"))
    frames = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    palette = image.quantize(32)
    return {
        "EXIF-rotated JPEG": _encoded(image, "JPEG", exif=sideways, quality=95),
        "CMYK JPEG": _encoded(image.convert("CMYK"), "JPEG", quality=95),
        "grayscale JPEG": _encoded(image.convert("L"), "JPEG", quality=95),
        "palette PNG": _encoded(palette, "PNG"),
        "transparent palette": _encoded(palette, "PNG", transparency=0),
        "alpha PNG": _encoded(alpha, "PNG"),
        "16-bit PNG": _encoded(Image.fromarray(gray.astype(np.uint16) * 257), "PNG"),
        "animated GIF": _encoded(image, "GIF", save_all=True, append_images=frames),
        "1x1 PNG": _encoded(_scene(1, 1), "PNG"),
        "very wide PNG": _encoded(_scene(2000, 16), "PNG"),
        "very tall PNG": _encoded(_scene(16, 2000), "PNG"),
        "WebP": _encoded(image, "WEBP", lossless=True),
    }


def too_many_pixels() -> bytes:
    """A PNG of a few KB with more pixels than any server here accepts."""
    return _encoded(Image.new("1", (16_000, 10_000)), "PNG")


def _scene(width: int, height: int) -> Image.Image:
    """Not symmetric in any direction, so that an image that is rotated, mirrored, squeezed or cropped is another."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    x, y = x / width, y / height
    ring = 255 * (np.hypot(x - 0.3, y - 0.4) < 0.25)
    channels = [255 * x, 255 * y**2, 128 + 127 * np.sin(9 * x * (1 + y))]
    return Image.fromarray(np.stack([np.maximum(channel, ring) for channel in channels], axis=2).astype(np.uint8))


def _encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()
