import io

import numpy as np
import pytest
from PIL import Image

from bundle.errors import EmptyImageError, NotAnImageError, TooManyPixelsError, UndecodableImageError
from bundle.manifest import ImageInput
from bundle.preprocess import FORMATS, decode, preprocess
from tests.images import encoded, gradient

STRETCH = ImageInput(height=32, width=40, resize="stretch")
CROP = ImageInput(height=32, width=32, resize="crop", shorter_side=36)
PAD = ImageInput(height=32, width=32, resize="pad")


@pytest.mark.parametrize("spec", [STRETCH, CROP, PAD])
def test_gives_contiguous_uint8_chw(spec: ImageInput) -> None:
    pixels = preprocess(encoded(gradient()), spec)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, spec.height, spec.width)
    assert pixels.flags["C_CONTIGUOUS"]


def test_same_size_is_the_identity() -> None:
    image = gradient(40, 32)
    assert np.array_equal(preprocess(encoded(image), STRETCH), np.asarray(image).transpose(2, 0, 1))


def test_is_deterministic() -> None:
    data = encoded(gradient(300, 200), "JPEG")
    assert np.array_equal(preprocess(data, CROP), preprocess(data, CROP))


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_formats_agree_with_png(format_: str) -> None:
    assert format_ in FORMATS
    image = gradient()
    png = preprocess(encoded(image), STRETCH).astype(int)
    other = preprocess(encoded(image, format_), STRETCH).astype(int)
    assert np.abs(png - other).mean() < 8  # lossy formats and GIF's palette differ a little


def test_crop_is_shorter_side_then_centre() -> None:
    image = gradient(200, 100)
    scaled = image.resize((72, 36), Image.Resampling.BILINEAR)
    expected = np.asarray(scaled.crop((20, 2, 52, 34))).transpose(2, 0, 1).astype(int)
    assert np.abs(preprocess(encoded(image), CROP).astype(int) - expected).max() <= 2


def test_pad_keeps_the_aspect_ratio_between_black_borders() -> None:
    pixels = preprocess(encoded(Image.new("RGB", (100, 50), "white")), PAD)
    assert (pixels[:, 8:24, :] == 255).all()
    assert (pixels[:, :8, :] == 0).all()
    assert (pixels[:, 24:, :] == 0).all()


# How an image lies in the file when its EXIF orientation is such that it will be shown upright.
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_honoured(orientation: int, format_: str) -> None:
    upright = gradient(64, 48)
    stored = upright if orientation == 1 else upright.transpose(STORED_AS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, format_, exif=exif.tobytes(), **({"quality": 95} if format_ != "PNG" else {}))
    with Image.open(io.BytesIO(data)) as check:
        assert check.getexif().get(0x0112, 1) == orientation
    expected = preprocess(encoded(upright), STRETCH).astype(int)
    assert np.abs(preprocess(data, STRETCH).astype(int) - expected).mean() < 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_counts_as_upright() -> None:
    good = encoded(gradient(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08garbage")
    assert preprocess(good, STRETCH).shape == (3, 32, 40)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "LA", "RGBA", "PA", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    gray = mode in ("L", "1", "LA", "I;16", "I", "F")
    image = gradient().convert("L") if gray else gradient()
    reference = preprocess(encoded(image.convert("RGB")), STRETCH).astype(int)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(np.asarray(image).astype(np.int32) * 257)
    elif mode in ("PA", "1"):
        image = image.convert("P" if mode == "PA" else "1")
    else:
        image = image.convert(mode)
    format_ = {"CMYK": "TIFF", "YCbCr": "TIFF", "F": "TIFF", "I": "TIFF"}.get(mode, "PNG")
    pixels = preprocess(encoded(image, format_), STRETCH).astype(int)
    assert np.abs(pixels - reference).mean() < (20 if mode == "1" else 12)
    if gray:
        assert (pixels[0] == pixels[1]).all()


def test_16_bit_gray_keeps_its_high_byte() -> None:
    values = np.arange(32 * 40, dtype=np.uint16).reshape(32, 40) * 51
    pixels = preprocess(encoded(Image.fromarray(values)), STRETCH)
    assert np.array_equal(pixels[0], (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_over_white(mode: str) -> None:
    clear = Image.new(mode, (8, 8), (0,) * len(mode))
    assert (preprocess(encoded(clear), STRETCH) == 255).all()


def test_transparent_colour_lies_over_white() -> None:
    black = Image.new("RGB", (8, 8), "black")
    assert (preprocess(encoded(black, transparency=(0, 0, 0)), STRETCH) == 255).all()
    assert (preprocess(encoded(black.convert("L"), transparency=0), STRETCH) == 255).all()


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(format_: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    data = encoded(
        frames[0], format_, save_all=True, append_images=frames[1:], **({"lossless": True} if format_ == "WEBP" else {})
    )
    assert preprocess(data, STRETCH)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (10_000, 1), (1, 10_000)])
@pytest.mark.parametrize("spec", [STRETCH, CROP, PAD])
def test_odd_shapes(size: tuple[int, int], spec: ImageInput) -> None:
    assert preprocess(encoded(Image.new("RGB", size, "red")), spec).shape == (3, spec.height, spec.width)


def test_scaled_decoding_gives_nearly_the_same_pixels() -> None:
    data = encoded(gradient(2400, 1600), "JPEG", quality=95)
    full = np.asarray(decode(data).resize((40, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(preprocess(data, STRETCH).astype(int) - full.astype(int)).max() <= 3


def test_scaled_decoding_of_a_image_that_lies_on_its_side() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(gradient(2400, 400).transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif.tobytes())
    reference = preprocess(encoded(gradient(2400, 400)), STRETCH).astype(int)
    assert np.abs(preprocess(data, STRETCH).astype(int) - reference).mean() < 4


def test_too_many_pixels_are_refused_before_decoding() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(TooManyPixelsError):
        preprocess(bomb, STRETCH)
    with pytest.raises(TooManyPixelsError, match="64 x 48"):
        preprocess(encoded(gradient()), STRETCH, max_image_pixels=1000)


def test_empty_and_foreign_bytes() -> None:
    with pytest.raises(EmptyImageError):
        preprocess(b"", STRETCH)
    for data in (b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 100):
        with pytest.raises(NotAnImageError):
            preprocess(data, STRETCH)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about damage that it can read past
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_damaged_images_raise_only_our_errors(format_: str) -> None:
    data = encoded(gradient(), format_)
    random = np.random.default_rng(0)
    with pytest.raises((UndecodableImageError, NotAnImageError)):
        preprocess(data[: len(data) // 2], STRETCH)
    for _ in range(60):
        broken = bytearray(data)
        for position in random.integers(0, len(data), 8):
            broken[position] = int(random.integers(256))
        try:
            preprocess(bytes(broken), STRETCH, 10_000_000)
        except (UndecodableImageError, NotAnImageError, TooManyPixelsError):
            continue
