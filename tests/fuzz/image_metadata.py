"""What images carry besides pixels: profiles, EXIF, animations, AVIF's boxes; sound, contradictory or garbage.

Whatever it is, the image is read as it is without, turned by a sound orientation alone, or is a named reject.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import ImageCms, features

from alip.build.images import ImagePolicy
from alip.eval.image_readers import ImageFiles
from tests.fuzz import OK, Target
from tests.fuzz.evaluation import read_all
from tests.fuzz.inputs import _read_image
from tests.fuzz.mutations import damage
from tests.helpers.shards import encoded, make_image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
ORIENTED = b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHHI", 0x112, 3, 1, 6, 0, 0)
ODD_NUMBERS = (0, 1, 2, 7, 255, 65_535, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


@lru_cache(maxsize=1)
def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile(rng: random.Random) -> bytes:
    """A colour profile: sound, damaged, of another size than it says, for other colours, without or with odd tags."""
    data = bytearray(_profile())
    action = rng.randrange(8)
    if action == 0:
        return damage(rng, bytes(data))
    if action == 1:
        data[0:4] = struct.pack(">I", rng.choice(ODD_NUMBERS))
    elif action == 2:
        data[16:20] = rng.choice((b"GRAY", b"CMYK", b"Lab ", b"15CL", b"\0\0\0\0", b"RGB "))
    elif action == 3:
        data[128:132] = struct.pack(">I", rng.choice(ODD_NUMBERS))  # tags
    elif action == 4:
        at = 132 + 12 * rng.randrange(5) + rng.choice((4, 8))
        data[at : at + 4] = struct.pack(">I", rng.choice(ODD_NUMBERS))  # where one is, how large
    elif action == 5:
        return rng.choice((b"", b"\0", b"\0" * 128, rng.randbytes(3000), bytes(data[:100]), b"x" * 10**6))
    elif action == 6:
        data += bytes(rng.choice((1, 70_000, 3 * 10**6)))
        data[0:4] = struct.pack(">I", len(data))
    return bytes(data)


def exif(rng: random.Random) -> bytes:
    """Directories: an orientation of any value, type and count; circles; lengths that are not there; megabytes."""
    order, mark = rng.choice((("<", b"II*\0"), (">", b"MM\0*")))
    tags = []
    for number in range(rng.choice((1, 1, 2, 40))):
        tag = (
            rng.choice((0x112, 0x112, 0x100, 0x8769, 0x8825, 0x014A, 0x9286, 0x010E, 0x927C, 0xFFFF))
            if number
            else 0x112
        )
        kind = rng.choice((3, 3, 3, 1, 2, 4, 5, 7, 9, 12, 13, 99))
        value = struct.pack(order + "HH", rng.choice((1, 3, 6, 8, 0, 9, 65_535)), 0)
        if rng.random() < 0.3:
            value = struct.pack(order + "I", rng.choice((8, 10, *ODD_NUMBERS)))
        tags.append(struct.pack(order + "HHI", tag, kind, rng.choice((1, 1, 1, *ODD_NUMBERS))) + value)
    count = rng.choice((len(tags), len(tags), 0, 65_535))
    following = rng.choice((0, 0, 8, *ODD_NUMBERS))
    content = mark + struct.pack(order + "IH", rng.choice((8, 8, 8, 0, 2**31)), count) + b"".join(tags)
    content += struct.pack(order + "I", following) + rng.randbytes(rng.choice((0, 9, 60_000)))
    lead = rng.choice((b"Exif\0\0", b"Exif\0\0", b"", b"Exif\0", b"Exif\0\0Exif\0\0"))
    return damage(rng, lead + content) if rng.random() < 0.2 else lead + content


def xmp(rng: random.Random) -> bytes:
    """An orientation in XMP; entities that expand to gigabytes."""
    value = rng.choice(("6", "8", "0", "-1", "x", "9" * 5000, ""))
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "xx">{entities}]>' if rng.random() < 0.5 else ""
    inner = f'<r tiff:Orientation="{value}">{"&e9;" if bomb else ""}</r>'
    return f'{bomb}<x:xmpmeta xmlns:x="adobe:ns:meta/">{inner}</x:xmpmeta>'.encode()


def animation(rng: random.Random) -> bytes:
    """Frames of PNG, WebP, AVIF or GIF, of which the first one counts: as they are, or with odd durations and ends."""
    form = rng.choice(("PNG", "WEBP", "GIF", *FORMATS[4:]))
    frames = [make_image(number, 40, 30) for number in range(rng.choice((2, 3, 20)))]
    options = {"duration": rng.choice((0, 1, 60_000)), "loop": rng.choice((0, 1, 65_535))}
    if form == "PNG":
        options |= {"default_image": rng.random() < 0.5, "blend": rng.randrange(2), "disposal": rng.randrange(3)}
    data = bytearray(encoded(frames[0], form, save_all=True, append_images=frames[1:], **options))
    mark = {"PNG": rng.choice((b"acTL", b"fcTL", b"fdAT")), "WEBP": rng.choice((b"ANIM", b"ANMF", b"VP8X"))}.get(form)
    if mark and rng.random() < 0.7 and (at := data.find(mark)) > 0:
        place = at + rng.choice((4, 8, 12, 16, 20))
        data[place : place + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(ODD_NUMBERS))
    return bytes(data)


def boxes(rng: random.Random) -> bytes:
    """AVIF with a box of another size, kind or order, or one again."""
    data = encoded(make_image(3, 60, 50), "AVIF", speed=10, exif=ORIENTED if rng.random() < 0.5 else b"")
    names = (b"ftyp", b"meta", b"hdlr", b"pitm", b"iloc", b"iinf", b"infe", b"iprp", b"ipco", b"ispe", b"pixi", b"av1C")
    found = [at for name in (*names, b"ipma", b"mdat", b"colr", b"iref") if (at := data.find(name)) > 0]
    at = rng.choice(found) - 4
    action = rng.randrange(4)
    if action == 0:
        return data[:at] + struct.pack(">I", rng.choice(ODD_NUMBERS)) + data[at + 4 :]
    if action == 1:
        return data[: at + 4] + rng.choice((*names, b"free", b"uuid")) + data[at + 8 :]
    size = struct.unpack(">I", data[at : at + 4])[0]
    if action == 2:
        return data[:at] + data[at : at + size] * rng.choice((2, 300)) + data[at + size :]
    return data[: at + 8] + damage(rng, data[at + 8 : at + size]) + data[at + size :]


def with_metadata(rng: random.Random) -> bytes:
    """An image with odd metadata of one or several kinds."""
    form = rng.choice(FORMATS)
    options: dict = {"speed": 10} if form == "AVIF" else {}
    kinds = rng.sample(("icc_profile", "exif", "xmp"), rng.choice((1, 1, 2)))
    image = make_image(1, 60, 40)
    if rng.random() < 0.2:
        image = image.convert(rng.choice(("L", "CMYK", "P", "RGBA") if form in ("PNG", "TIFF") else ("L",)))
    if form == "PNG" and image.mode == "CMYK":
        image = image.convert("LA")
    for kind in kinds:
        options[kind] = {"icc_profile": profile, "exif": exif, "xmp": xmp}[kind](rng)
    if form == "TIFF":
        options.pop("xmp", None)
        options.pop("exif", None)
    if form == "JPEG":  # at most 64 kB in a segment
        options |= {name: options[name][:65_500] for name in ("exif", "xmp") if name in options}
    try:
        return encoded(image, form, **options)
    except (ValueError, OSError, struct.error, SyntaxError, TypeError, KeyError, OverflowError, RuntimeError):
        return encoded(image, form)  # Pillow would not write it


def _make(rng: random.Random, folder: Path) -> Callable[[], object]:
    data = rng.choice((with_metadata, with_metadata, animation, boxes if "AVIF" in FORMATS else animation))(rng)
    if rng.random() < 0.1:
        data = damage(rng, data)
    path = folder / f"a.{rng.choice(('jpg', 'png', 'webp', 'avif', 'tif'))}"
    path.write_bytes(data)
    policy = ImagePolicy(short_side=rng.choice((0, 24, 256)))

    def read() -> None:
        _read_image(path, policy)
        read_all(ImageFiles([path]))

    return read


TARGETS = [Target("image metadata", _make, frozenset({OK}))]
