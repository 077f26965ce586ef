"""Pictures in, safe JPEGs out; what cannot be used says why."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from alip.build.images import ImageError, ImagePolicy, decode_image, to_jpeg
from alip.data.jpeg import jpeg_size
from tests.helpers.shards import encoded, picture

BIG = picture(1, 400, 300)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 80, "progressive": True}, {"subsampling": 0}])
def test_a_jpeg_that_needs_no_change_goes_in_untouched(options):
    data = encoded(picture(1, 320, 256), **options)
    stored = to_jpeg(data, ImagePolicy(short_side=256), "a.jpg")
    assert stored.data == data and stored.untouched and (stored.width, stored.height) == (320, 256)


def test_a_large_jpeg_is_shrunk():
    stored = to_jpeg(encoded(BIG, quality=95), ImagePolicy(short_side=150, quality=95))
    assert not stored.untouched and (stored.width, stored.height) == (200, 150) == jpeg_size(stored.data)
    expected = np.asarray(BIG.resize((200, 150), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels(stored.data) - expected).mean() < 2


def test_a_very_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same():
    large = picture(2, 1600, 1201)
    stored = to_jpeg(encoded(large, quality=95), ImagePolicy(short_side=150, quality=95))
    assert (stored.width, stored.height) == (200, 150)
    expected = np.asarray(large.resize((200, 150), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels(stored.data) - expected).mean() < 2


def test_zero_keeps_the_size():
    assert to_jpeg(encoded(BIG, "PNG"), ImagePolicy(short_side=0)).width == 400


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(BIG, quality=95, exif=exif)
    stored = to_jpeg(data, ImagePolicy(short_side=300, quality=95))
    assert stored.untouched == (orientation == 1)
    assert (stored.width > stored.height) == (orientation < 5)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    scaled = expected.resize((stored.width, stored.height), Image.Resampling.BICUBIC)
    assert np.abs(pixels(stored.data) - np.asarray(scaled).astype(int)).mean() < 3


def colour_cases():
    rgba = BIG.convert("RGBA")
    rgba.putalpha(Image.new("L", BIG.size, 0))
    grey16 = Image.fromarray(np.full((64, 64), 32896, dtype=np.uint16))
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    clear = palette.copy()
    clear.info["transparency"] = 1
    yield "alpha", encoded(rgba, "PNG"), (255, 255, 255)
    yield "webp with alpha", encoded(rgba, "WEBP", lossless=True), (255, 255, 255)
    yield "16 bits", encoded(grey16, "PNG"), (128, 128, 128)
    yield "palette", encoded(palette, "PNG"), (255, 0, 0)
    yield "palette with transparency", encoded(clear, "PNG", transparency=1), (255, 255, 255)
    yield "grey", encoded(Image.new("L", (64, 64), 77)), (77, 77, 77)
    yield "grey with alpha", encoded(Image.new("LA", (64, 64), (9, 0)), "PNG"), (255, 255, 255)
    yield "one bit", encoded(Image.new("1", (64, 64), 1), "PNG"), (255, 255, 255)
    yield "cmyk", encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)
    yield "gif", encoded(palette, "GIF"), (255, 0, 0)
    yield "bmp", encoded(Image.new("RGB", (64, 64), (1, 2, 200)), "BMP"), (1, 2, 200)
    yield "tiff float", encoded(Image.fromarray(np.full((64, 64), 50.0, np.float32)), "TIFF"), (50, 50, 50)


@pytest.mark.parametrize(
    "name, data, colour", colour_cases(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_colours(name, data, colour):
    assert decode_image(data).mode == "RGB"
    stored = to_jpeg(data, ImagePolicy(quality=95))
    assert not stored.untouched
    image = Image.open(io.BytesIO(stored.data))
    assert image.format == "JPEG" and image.mode == "RGB"
    assert np.abs(pixels(stored.data) - colour).max() <= 6


def animation(form: str) -> bytes:
    out = io.BytesIO()
    frames = [picture(i) for i in range(3)]
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


def corrupt_header() -> bytes:
    data = bytearray(encoded(BIG, "PNG"))
    data[100:140] = b"\xff" * 40
    return bytes(data)


@pytest.mark.parametrize(
    "reason, data, name",
    [
        ("empty", b"", "a.jpg"),
        ("not-an-image", b"<html>no such picture</html>", "a.jpg"),
        ("truncated", encoded(BIG)[:-300], "a.jpg"),
        ("truncated", encoded(picture(1, 1600, 1200))[:-3000], "a.jpg"),
        ("truncated", encoded(BIG, "PNG")[:-3000], "a.png"),
        ("broken", corrupt_header(), "a.png"),
        ("too-many-pixels", encoded(Image.new("1", (12_000, 10_000)), "PNG"), "a.png"),
        ("too-many-pixels", encoded(Image.new("1", (30_000, 20_000)), "PNG"), "a.png"),
        ("animated", animation("GIF"), "a.gif"),
        ("animated", animation("WEBP"), "a.webp"),
        ("animated", animation("PNG"), "a.png"),
        ("wrongly-named", encoded(BIG, "PNG"), "a.jpg"),
        ("tiny", encoded(picture(1, 300, 4)), "a.jpg"),
        ("not-an-image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.eps"),
    ],
)
def test_what_cannot_be_used_says_why(reason, data, name):
    with pytest.raises(ImageError) as error:
        to_jpeg(data, ImagePolicy(), name)
    assert error.value.reason == reason, error.value


def test_any_name_is_taken_on_request():
    assert to_jpeg(encoded(BIG, "PNG"), ImagePolicy(any_name=True), "a.jpg").width


@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes_never_raise_anything_else(seed):
    """Bits flipped all over: either a picture comes out or an ImageError does; and what comes out can be decoded."""
    rng = np.random.default_rng(seed)
    form = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")[seed % 6]
    data = bytearray(encoded(picture(seed, 90, 70), form))
    for at in rng.integers(0, len(data), 1 + seed):
        data[at] = int(rng.integers(0, 256))
    try:
        stored = to_jpeg(bytes(data), ImagePolicy(max_pixels=1_000_000))
    except ImageError as error:
        assert error.reason
    else:
        assert decode_image(stored.data).size == (stored.width, stored.height)


def test_jpeg_size():
    assert jpeg_size(encoded(BIG)) == (400, 300)
    assert jpeg_size(encoded(BIG, "PNG")) is None
    assert jpeg_size(b"\xff\xd8\xff") is None
