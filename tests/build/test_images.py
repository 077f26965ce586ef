"""Images in, safe JPEGs out; rejects name their reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from alip.build.images import ImageError, ImagePolicy, decode_image, to_jpeg
from alip.data.jpeg import jpeg_size
from alip.errors import UserError
from tests.helpers.shards import encoded, make_image

BIG = make_image(1, 400, 300)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 80, "progressive": True}, {"subsampling": 0}])
def test_a_jpeg_that_needs_no_change_goes_in_untouched(options):
    data = encoded(make_image(1, 320, 256), **options)
    stored = to_jpeg(data, ImagePolicy(short_side=256), "a.jpg")
    assert stored.data == data and stored.untouched and (stored.width, stored.height) == (320, 256)


def test_a_large_jpeg_is_shrunk():
    stored = to_jpeg(encoded(BIG, quality=95), ImagePolicy(short_side=150, quality=95))
    assert not stored.untouched and (stored.width, stored.height) == (200, 150) == jpeg_size(stored.data)
    expected = np.asarray(BIG.resize((200, 150), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels(stored.data) - expected).mean() < 2


def test_a_very_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same():
    large = make_image(2, 1600, 1201)
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


def png_16_bits(value: int, colours: int) -> bytes:
    """A PNG of one value, 64 × 64, with 16 bits, in which that value is transparent."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 0 if colours == 1 else 2, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", value) * colours),
        (b"IDAT", zlib.compress((b"\0" + struct.pack(">H", value) * (64 * colours)) * 64)),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(data)) + kind + data for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(one + struct.pack(">I", zlib.crc32(one[4:])) for one in parts)


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
    yield "16 bits, transparent", png_16_bits(0x1234, 1), (255, 255, 255)
    yield "16 bits, transparent colour", png_16_bits(0x1234, 3), (255, 255, 255)
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
    "name, data, colour", list(colour_cases()), ids=lambda value: value if isinstance(value, str) else ""
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
    frames = [make_image(i) for i in range(3)]
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
        ("not-an-image", b"<html>no such image</html>", "a.jpg"),
        ("truncated", encoded(BIG)[:-300], "a.jpg"),
        ("truncated", encoded(make_image(1, 1600, 1200))[:-3000], "a.jpg"),
        ("truncated", encoded(BIG, "PNG")[:-3000], "a.png"),
        ("broken", corrupt_header(), "a.png"),
        ("too-many-pixels", encoded(Image.new("1", (12_000, 10_000)), "PNG"), "a.png"),
        ("too-many-pixels", encoded(Image.new("1", (30_000, 20_000)), "PNG"), "a.png"),
        ("animated", animation("GIF"), "a.gif"),
        ("animated", animation("WEBP"), "a.webp"),
        ("animated", animation("PNG"), "a.png"),
        ("wrongly-named", encoded(BIG, "PNG"), "a.jpg"),
        ("tiny", encoded(make_image(1, 300, 4)), "a.jpg"),
        ("too-long", encoded(Image.new("RGB", (70_000, 9)), "PNG"), "a.png"),
        ("too-long", encoded(Image.new("RGB", (9, 65_501)), "PNG"), "a.png"),
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
    """Bits flipped all over: the result is an image or an ImageError, and an image can be decoded."""
    rng = np.random.default_rng(seed)
    form = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")[seed % 6]
    data = bytearray(encoded(make_image(seed, 90, 70), form))
    for at in rng.integers(0, len(data), 1 + seed):
        data[at] = int(rng.integers(0, 256))
    try:
        stored = to_jpeg(bytes(data), ImagePolicy(max_pixels=1_000_000))
    except ImageError as error:
        assert error.reason
    else:
        assert decode_image(stored.data).size == (stored.width, stored.height)


def second_page_broken(form: str) -> bytes:
    """Two pages, of which the second's header points nowhere."""
    out = io.BytesIO()
    frames = [make_image(i) for i in range(2)]
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    data = bytearray(out.getvalue())
    if form == "TIFF":
        first = int.from_bytes(data[4:8], "little")
        entries = int.from_bytes(data[first : first + 2], "little")
        second = int.from_bytes(data[first + 2 + 12 * entries : first + 6 + 12 * entries], "little")
        data[second : second + 40] = b"\xff" * 40
    else:
        data = data[: len(data) * 2 // 3]
    return bytes(data)


@pytest.mark.parametrize("form", ["TIFF", "GIF"])
def test_a_broken_second_page_is_a_reject(form):
    with pytest.raises(ImageError) as error:
        to_jpeg(second_page_broken(form))
    assert error.value.reason in ("broken", "truncated", "animated")


@pytest.mark.parametrize("size", [(400, 300), (1600, 1200)], ids=["whole", "decoded at a fraction"])
@pytest.mark.parametrize("damage", ["half", "zeroed", "removed"])
def test_a_jpeg_with_damaged_content_is_a_reject(damage, size):
    """libjpeg decodes all of these, and only warns: half of the image would be grey."""
    data = encoded(make_image(1, *size).effect_spread(20), quality=95)
    middle = len(data) // 2
    damaged = {
        "half": data[:middle] + b"\xff\xd9",
        "zeroed": data[:middle] + bytes(4096) + data[middle + 4096 :],
        "removed": data[:middle] + data[middle + 4096 :],
    }[damage]
    Image.open(io.BytesIO(damaged)).load()
    with pytest.raises(ImageError) as error:
        to_jpeg(damaged, ImagePolicy(short_side=0 if size[0] < 1000 else 256))
    assert error.value.reason in ("broken", "truncated")
    with pytest.raises(ImageError):
        decode_image(damaged)


def test_stray_bytes_between_headers_are_not_stored():
    data = encoded(make_image(1, 320, 256))
    at = data.index(b"\xff\xc0")
    stray = data[:at] + b"\x11\x22" + data[at:]
    stored = to_jpeg(stray)
    assert not stored.untouched and np.abs(pixels(stored.data) - pixels(data)).mean() < 2


def test_a_grey_jpeg_with_stray_bytes_and_a_cmyk_one_become_rgb():
    grey = encoded(make_image(1, 64, 48).convert("L"), quality=95)
    at = grey.index(b"\xff\xc0")
    assert decode_image(grey[:at] + b"\0" + grey[at:]).size == (64, 48)
    cmyk = encoded(make_image(1, 1600, 1200).convert("CMYK"), quality=95)
    assert to_jpeg(cmyk).height == 256
    with pytest.raises(ImageError):
        decode_image(cmyk[: len(cmyk) // 2] + b"\xff\xd9")


def costly(form: str) -> bytes:
    """A few kilobytes that would take more than a gigabyte, or minutes."""
    if form == "scans":
        progressive = encoded(Image.new("RGB", (9000, 9000)), progressive=True)
        scan = progressive.rindex(b"\xff\xda")
        return progressive[:-2] + progressive[scan:-2] * 200 + b"\xff\xd9"
    options = {"WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_adobe_deflate"}}[form]
    return encoded(Image.new("RGB", (9990, 9990)), form, **options)


@pytest.mark.parametrize("form", ["WEBP", "TIFF", "scans"])
def test_what_would_take_too_much_is_refused_before_it_is_decoded(form, monkeypatch):
    data = costly(form)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError) as error:
        to_jpeg(data)
    assert error.value.reason == "too-costly", error.value


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "I;16"])
def test_a_large_png_is_reduced_as_it_is_converted(mode, monkeypatch):
    """In strips of few rows, with the same result as in one piece (to within what two ways of shrinking differ)."""
    image = make_image(1, 1200, 903)
    image = image.convert("L").point(lambda value: value * 257, "I").convert("I;16") if mode == "I;16" else image
    data = encoded(image if mode == "I;16" else image.convert(mode), "PNG")
    whole = to_jpeg(data, ImagePolicy(quality=100))
    monkeypatch.setattr("alip.build.images._REDUCED_PIXELS", 30_000)
    strips = to_jpeg(data, ImagePolicy(quality=100))
    assert (strips.width, strips.height) == (whole.width, whole.height) == (340, 256)
    assert np.abs(pixels(strips.data) - pixels(whole.data)).mean() < (12 if mode in ("1", "P") else 2)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_large_image_is_turned_once(form, monkeypatch):
    """Pillow turns a TIFF itself, as it loads it."""
    monkeypatch.setattr("alip.build.images._REDUCED_PIXELS", 30_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(make_image(1, 1200, 903), form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).resize((256, 340), Image.Resampling.BOX)
    stored = to_jpeg(data, ImagePolicy(quality=95))
    assert np.abs(pixels(stored.data) - np.asarray(upright.convert("RGB")).astype(int)).mean() < 3


@pytest.mark.parametrize("name, value", [("short_side", -5), ("quality", 0), ("max_pixels", 0), ("min_side", -1)])
def test_a_policy_out_of_range_is_refused(name, value):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} should be from"):
        ImagePolicy(**{name: value})


@pytest.mark.parametrize(
    "values", [np.full((20, 30), np.nan, "f4"), np.full((20, 30), 0.9, "f4"), np.full((20, 30), 70_000, "i4")]
)
def test_pixels_without_a_known_white_are_rejected(values):
    with pytest.raises(ImageError) as error:
        to_jpeg(encoded(Image.fromarray(values), "TIFF"))
    assert error.value.reason == "unsupported-format"
