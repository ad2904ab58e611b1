"""A short way to decode plain JPEG files: libjpeg-turbo on the bytes, without Pillow.

For a small file, Pillow spends most of the time on opening it. Both use libjpeg-turbo with the same settings, so the pixels
are the same, bit for bit. A file is plain if it is baseline (one scan, 8 bits), gray or YCbCr, of moderate size, and has no
EXIF data (which may turn the image). For all other files, and those on which libjpeg-turbo has as much as a warning, the
functions return None: Pillow decodes or refuses them.

The format: ITU-T T.81, Annex B (https://www.w3.org/Graphics/JPEG/itu-t81.pdf).
"""

import os
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

# With this environment variable set to `pillow`, Pillow decodes every file. For comparisons.
DECODER_VARIABLE: Final = "_TRIDENT_DECODER"
MAX_PIXELS: Final = 4_000_000
_IS_ON: Final = os.environ.get(DECODER_VARIABLE) != "pillow"

_START: Final = b"\xff\xd8\xff"
_BASELINE, _SCAN = 0xC0, 0xDA
# Segments that do not change how the image is decoded: tables, restart interval, comment, application data but for
# APP1 (EXIF), APP2 (several pictures in a file) and APP14 (Adobe's colour transform).
_HARMLESS: Final = frozenset((0xC4, 0xDB, 0xDD, 0xFE, 0xE0, *range(0xE3, 0xEE), 0xEF))
_MAX_SEGMENTS: Final = 32


class PlainJpeg(NamedTuple):
    """The size of a plain JPEG, and its components: 1 (gray) or 3 (YCbCr)."""

    width: int
    height: int
    components: int


def plain_jpeg(data: bytes) -> PlainJpeg | None:
    """Read the headers of a JPEG. None if it is not plain."""
    if not _IS_ON or not data.startswith(_START):
        return None
    found = None
    position = 2
    for _ in range(_MAX_SEGMENTS):
        if len(data) < position + 4 or data[position] != 0xFF:
            return None
        marker = data[position + 1]
        segment = data[position + 4 : position + 2 + (data[position + 2] << 8 | data[position + 3])]
        if marker == _SCAN:
            # One scan with all components: libjpeg-turbo ignores what follows it.
            return found if found is not None and segment and segment[0] == found.components else None
        if marker == _BASELINE:
            found = _frame(segment) if found is None else None
            if found is None:
                return None
        elif marker not in _HARMLESS:
            return None
        position += len(segment) + 4
    return None


def _frame(segment: bytes) -> PlainJpeg | None:
    """Read a start of frame: precision, height, width, and three bytes per component, of which the first is its id."""
    if len(segment) < 9 or segment[0] != 8:
        return None
    height, width, components = segment[1] << 8 | segment[2], segment[3] << 8 | segment[4], segment[5]
    if len(segment) != 6 + 3 * components or not 0 < height * width <= MAX_PIXELS:
        return None
    if components == 1 or (components == 3 and segment[6::3] == b"\x01\x02\x03"):
        return PlainJpeg(width, height, components)
    return None


def decode_plain_jpeg(data: bytes, jpeg: PlainJpeg, scale: int = 1) -> npt.NDArray[np.uint8] | None:
    """Decode at 1 / `scale` (1, 2, 4 or 8) of the size, rounded up.

    Returns:
        uint8 `[height, width]` or `[height, width, 3]`; None if the data is damaged.
    """
    import simplejpeg

    height, width = -(-jpeg.height // scale), -(-jpeg.width // scale)
    color = "GRAY" if jpeg.components == 1 else "RGB"
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, color, min_height=height, min_width=width, min_factor=scale
        )
    except ValueError:
        return None
    if pixels.shape[:2] != (height, width):
        return None
    return pixels[:, :, 0] if jpeg.components == 1 else pixels
