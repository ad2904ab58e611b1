"""Encoded image bytes in, uint8 pixels `[3, height, width]` out: the one preprocessing of training and of all servers.

Deterministic for one version of Pillow. The steps: identify the format by content, reject too many pixels, decode (a JPEG
that is much larger than needed at a fraction of its size), apply the EXIF orientation, convert to RGB, resize.
"""

import contextlib
import io
import threading
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from bundle.errors import EmptyImageError, NotAnImageError, TooManyPixelsError, UndecodableImageError
from bundle.jpeg import decode_plain_jpeg, plain_jpeg
from bundle.manifest import ImageInput

Pixels = npt.NDArray[np.uint8]

# An explicit list: Pillow would otherwise also try formats that start programs (EPS starts Ghostscript).
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_IMAGE_PIXELS: Final = 50_000_000
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size only if the resize filter still gets this many source pixels per target
# pixel and axis.
_SCALED_DECODING_MARGIN: Final = 2
_FILTERS: Final = {filter_.name.lower(): filter_ for filter_ in Image.Resampling}
# Decoding takes up to 12 bytes per pixel (three RGBA images), so only one large image is decoded at a time.
_LARGE_PIXELS: Final = 4_000_000
_one_large_image: Final = threading.Lock()
# Limits of `is_cheap`. The bytes bound what a hostile PNG can hold; the pixels, what it can inflate to.
_CHEAP_BYTES: Final = 32_768
_CHEAP_PIXELS: Final = 100_000
_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_WHITE: Final = (255, 255, 255, 255)


def preprocess(data: bytes, spec: ImageInput, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Pixels:
    """Decode an image and resize it to the model's input.

    Args:
        data: a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF file; of an animation, the first frame.
        spec: height, width, resize policy and filter of the bundle.
        max_image_pixels: larger images are rejected before any pixel is decoded.

    Returns:
        uint8 `[3, height, width]`, RGB, C-contiguous.

    Raises:
        EmptyImageError, NotAnImageError, TooManyPixelsError, UndecodableImageError.
    """
    array = _plain_pixels(data, spec, max_image_pixels)
    if array is None:
        array = np.asarray(_resize(_decode(data, spec, max_image_pixels), spec))
    if array.ndim == 2:  # gray: the three channels are equal
        return np.repeat(array[np.newaxis], 3, axis=0)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def decode(data: bytes, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """An image at its full size, upright, in mode RGB: `preprocess` without the resize, for training's augmentation.

    Raises:
        As `preprocess`.
    """
    return _decode(data, None, max_image_pixels).convert("RGB")


def is_cheap(data: bytes) -> bool:
    """Whether `preprocess` surely takes less than a few milliseconds, by size and headers of a JPEG or PNG file."""
    if len(data) > _CHEAP_BYTES:
        return False
    if data.startswith(_PNG_START):
        width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
        return width * height <= _CHEAP_PIXELS
    jpeg = plain_jpeg(data)
    return jpeg is not None and jpeg.width * jpeg.height <= _CHEAP_PIXELS


def _plain_pixels(data: bytes, spec: ImageInput, max_image_pixels: int) -> Pixels | None:
    """uint8 `[height, width]` or `[height, width, 3]` of a plain JPEG; None for other files."""
    jpeg = plain_jpeg(data)
    if jpeg is None or jpeg.width * jpeg.height > max_image_pixels:
        return None
    array = decode_plain_jpeg(data, jpeg, _scale(jpeg.width, jpeg.height, spec))
    if array is None or (array.shape[:2] == (spec.height, spec.width) and spec.resize != "crop"):
        return array
    return np.asarray(_resize(Image.fromarray(array), spec))


def _decode(data: bytes, spec: ImageInput | None, max_image_pixels: int) -> Image.Image:
    """Upright, in mode RGB or L; at a fraction of its size if that is enough for `spec`."""
    image = _open(data, max_image_pixels)
    try:
        orientation = _orientation(image)
        if spec is not None and image.format in ("JPEG", "MPO"):
            _draft(image, spec, sideways=orientation >= 5)
        large = image.width * image.height > _LARGE_PIXELS
        with _one_large_image if large else contextlib.nullcontext():
            image.load()
            if orientation != 1:
                image = ImageOps.exif_transpose(image)
            return _to_rgb_or_gray(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
        raise UndecodableImageError(
            f"the {image.format} data is damaged or truncated ({type(error).__name__})"
        ) from error


def _open(data: bytes, max_image_pixels: int) -> Image.Image:
    if not data:
        raise EmptyImageError("the image has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise NotAnImageError(f"the bytes are not in a supported format: {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixelsError(f"the image has more than {max_image_pixels} pixels") from error
    except MemoryError:
        raise
    except Exception as error:
        raise UndecodableImageError(f"the image's header is damaged ({type(error).__name__})") from error
    width, height = image.size
    if width * height > max_image_pixels:
        raise TooManyPixelsError(f"the image has {width} x {height} pixels; at most {max_image_pixels} are accepted")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if the EXIF data is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _draft(image: Image.Image, spec: ImageInput, *, sideways: bool) -> None:
    """Let libjpeg decode at a fraction of the size (Pillow's Image.draft)."""
    width, height = reversed(image.size) if sideways else image.size
    scale = _scale(width, height, spec)
    if scale > 1:
        image.draft(image.mode, (image.width // scale, image.height // scale))


def _scale(width: int, height: int, spec: ImageInput) -> int:
    """The fraction of its size at which a JPEG is decoded: 1, 1/2, 1/4 or 1/8, as its denominator."""
    left, top, right, bottom = _source_box(width, height, spec)
    target_width, target_height = _target_size(width, height, spec)
    shrink = min((right - left) / target_width, (bottom - top) / target_height) / _SCALED_DECODING_MARGIN
    return next((scale for scale in (8, 4, 2) if shrink >= scale), 1)


def _to_rgb_or_gray(image: Image.Image) -> Image.Image:
    """Mode "RGB", or "L" if the image is gray."""
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode == "I":  # 16 bits of gray in 32
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")


def _resize(image: Image.Image, spec: ImageInput) -> Image.Image:
    size = _target_size(image.width, image.height, spec)
    box = _source_box(image.width, image.height, spec)
    if size != image.size or box != (0, 0, *image.size):
        image = image.resize(size, _FILTERS[spec.filter], box=box)
    if spec.resize == "pad" and size != (spec.width, spec.height):
        canvas = Image.new(image.mode, (spec.width, spec.height))
        canvas.paste(image, ((spec.width - size[0]) // 2, (spec.height - size[1]) // 2))
        return canvas
    return image


def _target_size(width: int, height: int, spec: ImageInput) -> tuple[int, int]:
    """The size after resizing and before padding."""
    if spec.resize != "pad":
        return spec.width, spec.height
    scale = min(spec.width / width, spec.height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _source_box(width: int, height: int, spec: ImageInput) -> tuple[float, float, float, float]:
    """The part of the source that is resized: all of it, or the centre for `crop`.

    Cropping before resizing makes a very wide image as cheap as a square one.
    """
    if spec.shorter_side is None:
        return 0, 0, width, height
    scale = min(width, height) / spec.shorter_side
    box_width, box_height = spec.width * scale, spec.height * scale
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height
