"""The walk over a JPEG's markers: what every decoder takes passes, what is odd is named."""

import io

import numpy as np
import pytest
from PIL import Image

from alip.data.decoders import check_decodes
from alip.data.jpeg import OddJpeg, jpeg_size, read_plain_jpeg, with_clean_headers
from tests.helpers.shards import encoded, make_image

PLAIN = encoded(make_image(1, 60, 44), quality=85)
FRAME = PLAIN.index(b"\xff\xc0")
SCAN = PLAIN.index(b"\xff\xda")


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"optimize": True}, {"quality": 100},
     {"restart_marker_blocks": 2}, {"comment": b"hello"}, {"icc_profile": bytes(3000)}],
    ids=str,
)  # fmt: skip
def test_the_usual_forms_are_plain(options):
    data = encoded(make_image(2, 70, 50), **options)
    plain = read_plain_jpeg(data)
    assert (plain.width, plain.height, plain.progressive) == (70, 50, "progressive" in options)
    assert plain.scans == (10 if plain.progressive else 1)
    assert plain.coefficients == (80 * 64 * 3 // 2 if options.get("subsampling") is None else plain.coefficients)


def changed(at: int, *values: int) -> bytes:
    return PLAIN[:at] + bytes(values) + PLAIN[at + len(values) :]


ODD = {
    "stray bytes before a segment": PLAIN[:FRAME] + b"\x01\x02\x03" + PLAIN[FRAME:],
    "fill bytes before a segment": PLAIN[:FRAME] + b"\xff\xff" + PLAIN[FRAME:],
    "bytes behind the end": PLAIN + b"\0",
    "no end marker": PLAIN[:-2],
    "cut within the scan": PLAIN[: SCAN + 40],
    "two frames": PLAIN[:FRAME] + PLAIN[FRAME : FRAME + 19] + PLAIN[FRAME:],
    "12 bits": changed(FRAME + 4, 12),
    "an unknown sampling": changed(FRAME + 11, 0x31),
    "components named R, G, B": changed(FRAME + 10, 82, 0x22, 0, 71, 0x11, 1, 66),
    "a quantisation table that is missing": changed(FRAME + 12, 3),
    "a segment that is too long": changed(FRAME + 2, 0xFF, 0xF0),
    "arithmetic coding": changed(FRAME + 1, 0xC9),
    "no size": changed(FRAME + 5, 0, 0),
    "a scan of another component": changed(SCAN + 5, 9),
    "a scan without its table": changed(SCAN + 6, 0x33),
    "a scan of a part": changed(SCAN + 11, 1),
    "an empty scan": PLAIN[: SCAN + 14] + b"\xff\xd9",
    "RGB inside": PLAIN[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + PLAIN[2:],
    "grey": encoded(make_image(1).convert("L")),
    "no JPEG": encoded(make_image(1), "PNG"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_named(name):
    with pytest.raises(OddJpeg):
        read_plain_jpeg(ODD[name])


def test_clean_headers_change_no_pixel():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(make_image(3, 60, 40), exif=exif, comment=b"x", icc_profile=bytes(100))
    at = data.index(b"\xff\xc0")
    clean = with_clean_headers(data[:at] + b"\0\x07stray" + data[at:])
    assert read_plain_jpeg(clean) == read_plain_jpeg(data) and len(clean) < len(data)
    ours, theirs = (np.asarray(Image.open(io.BytesIO(one))) for one in (clean, data))
    assert np.array_equal(ours, theirs)


def test_jpeg_size():
    assert jpeg_size(PLAIN) == (60, 44)
    assert jpeg_size(encoded(make_image(1), "PNG")) is None
    assert jpeg_size(b"\xff\xd8\xff") is None


def test_the_decoder_that_trains_is_asked():
    pytest.importorskip("nvidia.dali")
    good = [encoded(make_image(number, 30 + number, 20)) for number in range(5)]
    stray = ODD["stray bytes before a segment"]  # libjpeg takes it, DALI does not
    Image.open(io.BytesIO(stray)).load()
    errors = check_decodes([*good[:3], stray, *good[3:], b"no JPEG at all"])
    assert [bool(error) for error in errors] == [False] * 3 + [True] + [False] * 2 + [True]
