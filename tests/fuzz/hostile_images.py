"""Images made to harm: bombs, rare variants of the formats, contradictions in their headers; now and then damaged too.

What builds and what evaluates reads each of them: an image, or a named reject, in bounded time and memory.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import Image, features

from alip.build.images import ImagePolicy
from alip.eval.image_readers import ImageFiles
from tests.fuzz import OK, Target
from tests.fuzz.evaluation import read_all
from tests.fuzz.inputs import _read_image
from tests.fuzz.mutations import damage
from tests.helpers.shards import encoded, make_image

SIDES = (0, 1, 2, 9, 255, 4096, 16_383, 16_384, 30_000, 65_500, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def _chunk(kind: bytes, content: bytes, right: bool = True) -> bytes:
    check = zlib.crc32(kind + content) ^ (not right)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def _png(width: int, height: int, depth: int, colour: int, data: bytes, *chunks: bytes, interlace: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colour, 0, 0, interlace)
    parts = [_chunk(b"IHDR", head), *chunks, _chunk(b"IDAT", data), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@lru_cache(maxsize=8)
def _zeros(size: int) -> bytes:
    """So many zero bytes, compressed."""
    packer, out = zlib.compressobj(9), []
    while size > 0:
        out.append(packer.compress(bytes(min(size, 1 << 24))))
        size -= 1 << 24
    return b"".join(out) + packer.flush()


def png(rng: random.Random) -> bytes:
    """Chunks that unpack to gigabytes, sizes that the data contradict, wrong check sums, rare depths, many frames."""
    action = rng.randrange(9)
    small = _zeros(41 * 40)
    if action == 0:
        kind, lead = rng.choice(((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")))
        return _png(40, 40, 8, 0, small, *[_chunk(kind, lead + _zeros(200 << 20))] * rng.choice((1, 1, 30)))
    if action == 1:
        return _png(40, 40, 8, 0, small, _chunk(rng.choice((b"tEXt", b"eXIf", b"prVt")), b"k\0" + bytes(30 << 20)))
    if action == 2:
        return _png(40, 40, 8, 0, small, *[_chunk(b"tEXt", b"k\0v" + bytes(9))] * 50_000)
    if action == 3:
        return _png(rng.choice(SIDES), rng.choice(SIDES), rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 6)), small)
    if action == 4:
        side = rng.choice((3_000, 12_000, 25_000))
        return _png(side, side, 1, 0, _zeros(side * (side // 8 + 1)), interlace=rng.choice((0, 1)))
    if action == 5:
        return _png(40, 40, rng.choice((0, 1, 3, 8, 16, 32)), rng.randrange(8), small, interlace=rng.randrange(3))
    if action == 6:
        return _png(40, 40, 8, 0, small, _chunk(b"PLTE", bytes(rng.choice((0, 2, 3, 768, 3000))), rng.random() < 0.5))
    if action == 7:
        return _png(40, 40, 8, 0, _zeros(300 << 20))  # far more data than the image has
    frames = [make_image(number, 20, 20) for number in range(3)]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:] * rng.choice((1, 100)))


@lru_cache(maxsize=4)
def _jpeg(progressive: bool, mode: str) -> bytes:
    return encoded(make_image(1, 90, 60).convert(mode), quality=80, progressive=progressive)


def _segments(data: bytes) -> tuple[list[bytes], bytes]:
    """The segments before the first scan, and the rest."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(data[at : at + size])
        at += size
    return found, data[at:]


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", min(65_535, len(content) + 2)) + content[:65_533]


def jpeg(rng: random.Random) -> bytes:
    """Thousands of scans, arithmetic coding, 12 bits, Adobe's markers, odd orientations, megabytes of segments."""
    mode = rng.choice(("RGB", "RGB", "L", "CMYK"))
    progressive = rng.random() < 0.5
    segments, rest = _segments(_jpeg(progressive, mode))
    frame = next(i for i, one in enumerate(segments) if one[1] in (0xC0, 0xC1, 0xC2))
    action = rng.randrange(10)
    if action == 0:  # the scans again and again
        body = rest.removesuffix(b"\xff\xd9")
        return b"\xff\xd8" + b"".join(segments) + body * rng.choice((2, 100, 3_000)) + b"\xff\xd9"
    if action == 1:  # another coding process: lossless, arithmetic, hierarchical
        segments[frame] = (
            bytes((0xFF, rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB)))) + segments[frame][2:]
        )
    elif action == 2:  # bits and size
        height, width = (rng.choice(SIDES) & 0xFFFF for _ in range(2))
        bits = rng.choice((8, 8, 12, 16, 0))
        segments[frame] = segments[frame][:4] + struct.pack(">BHH", bits, height, width) + segments[frame][9:]
    elif action == 3:
        transform = bytes((rng.randrange(4),))
        segments.insert(rng.randrange(len(segments)), _segment(0xEE, b"Adobe\0d\0\0\0\0" + transform))
    elif action == 4:  # orientations of every value and type
        value, kind, count = (
            rng.choice((0, 1, 6, 8, 9, 65_535)),
            rng.choice((1, 3, 4, 7, 12, 99)),
            rng.choice((0, 1, 2**31)),
        )
        entry = struct.pack("<HHIHH", 0x112, kind, count, value, 0)
        head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, rng.choice((1, 1, 65_535))) + entry
        segments.insert(0, _segment(0xE1, head + struct.pack("<I", rng.choice((0, 8, 2**31)))))
    elif action == 5:
        kind = rng.choice(
            ((0xE1, b"Exif\0\0II*\0"), (0xE2, b"ICC_PROFILE\0\1\xff"), (0xFE, b""), (0xED, b"Photoshop 3.0\0"))
        )
        segments = [_segment(kind[0], kind[1] + bytes(65_000))] * rng.choice((1, 300)) + segments
    elif action == 6:
        segments.append(_segment(0xDD, struct.pack(">H", rng.choice((0, 1, 7, 65_535)))))
    elif action == 7:  # sampling factors and component numbers
        at = rng.randrange(10, len(segments[frame]))
        changed = bytearray(segments[frame])
        changed[at] = rng.choice((0, 1, 0x11, 0x22, 0x41, 0x44, 0xFF))
        segments[frame] = bytes(changed)
    elif action == 8:
        segments = segments * rng.choice((2, 50))
    else:  # an image in the image, stray bytes, no end
        rest = rng.choice((rest[: len(rest) // 2], rest + _jpeg(False, "RGB"), rest + bytes(1 << 20), rest[:-2]))
    return b"\xff\xd8" + b"".join(segments) + rest


def _tiff(tags: list[tuple[int, int, int, int]], data: bytes, following: int) -> bytes:
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", following) + data


def tiff(rng: random.Random) -> bytes:
    """Directories in a circle, counts of billions, strips that are not there, deflate bombs."""
    width, height = (rng.choice((40, 40, 40, *SIDES)) & 0xFFFFFFFF for _ in range(2))
    at = 8 + 2 + 9 * 12 + 4
    bomb = _zeros(300 << 20) if rng.random() < 0.3 else zlib.compress(bytes(1600))
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, rng.choice((1, 5, 7, 8, 32773, 50001))),
    ]
    tags += [
        (262, 3, 1, rng.randrange(9)),
        (273, 4, 1, at),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, len(bomb)),
    ]
    if rng.random() < 0.5:
        i = rng.randrange(len(tags))
        odd = rng.choice((0, 1, 8, at, 2**31, 2**32 - 1))
        tags[i] = (tags[i][0], rng.choice((*range(1, 14), 99)), rng.choice((0, 1, 3, 2**20, 2**31)), odd)
    return _tiff(tags, bomb, rng.choice((0, 0, 8, 8, 9, at, 2**31)))


def gif(rng: random.Random) -> bytes:
    """A screen of gigapixels, frames outside of it, thousands of frames."""
    width, height = (rng.choice((40, 40, *SIDES)) & 0xFFFF for _ in range(2))
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, rng.choice((0x80, 0xF7, 0)), 0, 0)
    table = bytes(3 * 2 ** ((head[10] & 7) + 1)) if head[10] & 0x80 else b""
    left, top, w, h = (rng.choice((0, 1, 40, 65_535)) for _ in range(4))
    frame = b"," + struct.pack("<HHHHB", left, top, w, h, rng.choice((0, 0x40))) + b"\x02\x02\x4c\x01\x00"
    return head + table + frame * rng.choice((1, 3, 5_000)) + rng.choice((b";", b"", b"\0" * 1000))


def webp(rng: random.Random) -> bytes:
    """Animations, canvases that differ from the frame, lossless images of one colour and full size."""
    action = rng.randrange(4)
    if action == 0:
        frames = [make_image(number, 20, 20) for number in range(3)]
        return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:] * rng.choice((1, 60)), duration=1)
    data = bytearray(encoded(make_image(2, 50, 40), "WEBP", lossless=action == 1, exif=b"Exif\0\0II*\0" + bytes(9)))
    if action == 2:
        at = data.find(b"VP8X")
        if at > 0:
            data[at + 12 : at + 18] = rng.randbytes(6)
    elif action == 3:
        return encoded(Image.new("RGB", (4_000, rng.choice((500, 2_500)))), "WEBP", lossless=True, method=0)
    return bytes(data)


def avif(rng: random.Random) -> bytes:
    """AVIF where this Pillow has it, else only its first box."""
    if not features.check("avif"):
        return b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + rng.randbytes(200)
    return encoded(make_image(3, 60, 50), "AVIF", speed=10)


def others(rng: random.Random) -> bytes:
    """What other readers of Pillow would take: programs in PostScript, fonts, films; bitmaps of impossible size."""
    size = struct.pack(
        "<IiiHHI", 40, rng.choice((40, -40, 2**31 - 1)), rng.choice((40, -40, -(2**31))), 1, 8, rng.randrange(4)
    )
    bitmap = b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + size + bytes(24) + rng.randbytes(900)
    forms = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop",
        b"8BPS" + rng.randbytes(99),
        bitmap,
    ]
    forms += [
        b"\0\0\1\0\xff\xff" + bytes(60),
        b"SIMPLE  =                    T",
        b"DDS " + bytes(124),
        b"<svg/>",
        b"P6 9 9 255 ",
    ]
    forms += [
        b"P5 99999999 99999999 255 ",
        b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
        b"gimp xcf file",
        b"#define a_width 9\n",
    ]
    return rng.choice(forms)


MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    **{"png": png, "jpg": jpeg, "tif": tiff, "gif": gif, "webp": webp, "avif": avif, "bmp": others}
}


def _make(rng: random.Random, folder: Path) -> Callable[[], object]:
    form = rng.choice(list(MAKERS))
    data = MAKERS[form](rng)
    if rng.random() < 0.2 and len(data) < 1 << 20:
        data = damage(rng, data)
    path = folder / f"a.{rng.choice((form, form, 'jpg'))}"
    path.write_bytes(data)
    policy = ImagePolicy(short_side=rng.choice((0, 24, 256)))
    return lambda: read(path, policy)


def read(path: Path, policy: ImagePolicy) -> None:
    _read_image(path, policy)
    read_all(ImageFiles([path]))


TARGETS = [Target("hostile image", _make, frozenset({OK}))]
