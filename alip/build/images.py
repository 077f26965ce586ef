"""From any image's bytes to a JPEG that is safe to store: what goes in here, every later reader can decode."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from alip.build.image_cost import check_cost
from alip.build.image_errors import ImageError
from alip.data.image_file import open_image
from alip.data.jpeg import OddJpeg, read_plain_jpeg, with_clean_headers
from alip.errors import UserError

EXTENSIONS = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "jpe": "JPEG",
    "jfif": "JPEG",
    "png": "PNG",
    "apng": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "dib": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
}
# Images too, but of formats that are not read: they are rejected by name, not passed over.
_OTHERS = """
avif heic heif svg svgz jxl jp2 j2k jpx jxr wdp ico icns psd tga eps ai exr hdr dds qoi ppm pgm pbm pnm pcx xcf
cr2 cr3 nef arw dng orf raf rw2
"""
OTHER_IMAGES = frozenset(_OTHERS.split())
MAX_PIXELS = 100_000_000
MIN_SIDE = 8
LONGEST_SIDE = 65_500  # of a JPEG; an encoder that is given a longer one may crash
SHORT_SIDE = 256
QUALITY = 90
_REDUCED_PIXELS = 16_000_000  # larger ones are made RGB and reduced strip by strip, so that one copy is in memory
_HARMLESS = re.compile("extraneous bytes before marker|JFIF revision|Adobe color transform")  # if of the headers only
_ORIENTATION = 0x0112  # the EXIF tag, and the transposition that turns each of its values upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImagePolicy:
    """What is done to images before they are stored.

    short_side: images are shrunk (never enlarged) to it, in pixels; 0: keep the size. quality: of the JPEGs written.
    max_pixels: larger ones are refused before they are decoded. min_side: smaller ones are refused.
    any_name: take a PNG that is called .jpg.
    """

    short_side: int = SHORT_SIDE
    quality: int = QUALITY
    max_pixels: int = MAX_PIXELS
    min_side: int = MIN_SIDE
    any_name: bool = False

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            if not least <= getattr(self, name) <= most:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} should be from {least} to {most:,}, not {getattr(self, name)}")


_RANGES = (
    ("short_side", 0, LONGEST_SIDE),
    ("quality", 1, 100),
    ("max_pixels", 1, 10**12),
    ("min_side", 1, LONGEST_SIDE),
)


@dataclass(frozen=True)
class StoredImage:
    """A JPEG ready to store. untouched: these are the very bytes that came in."""

    data: bytes
    width: int
    height: int
    untouched: bool


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS, name: str = "", short_side: int = 0) -> Image.Image:
    """The image, 8-bit RGB, upright, transparency put on white. ImageError(reason) if it cannot be used.

    name: the file's name; where its extension promises another format, the reason is `wrongly-named`.
    short_side: if given, a large image may come back smaller, but never below this short side.
    """
    image = _open(data, max_pixels, name)
    rgb = _load_rgb(image, data, short_side)
    return rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)


def to_jpeg(data: bytes, policy: ImagePolicy | None = None, name: str = "") -> StoredImage:
    """The image as a JPEG by `policy`: the same bytes where nothing has to change, else decoded, shrunk, encoded.

    ImageError(reason) if it cannot be used.
    """
    policy = policy or ImagePolicy()
    image = _open(data, policy.max_pixels, "" if policy.any_name else name)
    if min(image.size) < policy.min_side:
        raise ImageError("tiny", f"{image.width} × {image.height} pixels, shorter than {policy.min_side}")
    width, height = image.size
    scale = min(1.0, policy.short_side / min(image.size)) if policy.short_side else 1.0
    if max(image.size) * scale > LONGEST_SIDE:
        raise ImageError("too-long", f"{width} × {height} pixels; the sides of a JPEG are at most {LONGEST_SIDE:,}")
    rgb = _load_rgb(image, data, policy.short_side)  # also of those that stay as they are: this finds the broken ones
    if scale == 1 and _is_kept(image, data):
        return StoredImage(data, width, height, untouched=True)
    try:
        return _encoded(rgb, (width, height), scale, policy.quality)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError("not-encoded", f"cannot be written as JPEG: {error}") from None


def _is_kept(image: Image.Image, data: bytes) -> bool:
    """True for an upright JPEG of the form that every decoder takes: its bytes need no change."""
    if image.format != "JPEG" or _orientation(image) != 1:
        return False
    try:
        plain = read_plain_jpeg(data)
    except OddJpeg:
        return False
    return (plain.width, plain.height) == image.size


def _encoded(rgb: np.ndarray | Image.Image, size: tuple[int, int], scale: float, quality: int) -> StoredImage:
    """Decoded pixels (perhaps smaller than the original `size` already) → shrunk and encoded."""
    from alip.build import pixels  # torch takes seconds to load, and most who use this module only decode

    tensor = pixels.to_tensor(rgb)
    width, height = size
    if (tensor.shape[2] - tensor.shape[1]) * (width - height) < 0:  # it was turned upright
        width, height = height, width
    if scale < 1:
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        tensor = pixels.shrink(tensor, width, height)
    stored = pixels.encode(tensor, quality)
    try:
        plain = read_plain_jpeg(stored)
    except OddJpeg as error:
        raise ImageError("not-encoded", f"the encoder did not write a complete JPEG: {error}") from None
    if (plain.width, plain.height) != (width, height):
        raise ImageError("not-encoded", "the encoder wrote another size")
    return StoredImage(stored, width, height, untouched=False)


def _open(data: bytes, max_pixels: int, name: str) -> Image.Image:
    """Reads the image's header, not its pixels."""
    if not data:
        raise ImageError("empty", "no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's advice on sizes and odd metadata; the limit is ours
            image = open_image(data)
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except UnidentifiedImageError as error:
        raise ImageError("not-an-image", str(error)) from None
    except Image.DecompressionBombError as error:
        raise ImageError("too-many-pixels", str(error)) from None
    except Exception as error:
        raise ImageError(_broken_or_truncated(str(error)), f"unreadable header: {error}") from None
    if image.width * image.height > max_pixels:
        raise ImageError("too-many-pixels", f"{image.width} × {image.height} pixels, the limit is {max_pixels}")
    promised = EXTENSIONS.get(name.rpartition(".")[2].lower()) if "." in name else None
    found = "JPEG" if image.format == "MPO" else image.format
    if promised and promised != found:
        raise ImageError("wrongly-named", f"called {name} but holds a {found}")
    if frames > 1:
        raise ImageError("animated", f"{frames} frames")
    return image


def _broken_or_truncated(detail: str) -> str:
    lowered = detail.lower()
    return "truncated" if "truncated" in lowered or "premature end of jpeg file" in lowered else "broken"


def _load_rgb(image: Image.Image, data: bytes, short_side: int) -> np.ndarray | Image.Image:
    """The pixels, RGB and upright; with a short_side perhaps reduced, but never below it."""
    check_cost(image, data, short_side)
    reduction = max(1, int(min(image.size) / short_side)) if short_side else 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rgb: np.ndarray | Image.Image
            if image.format in ("JPEG", "MPO"):
                turn = _TURNS.get(_orientation(image))
                rgb = _decode_jpeg(image, data, reduction)
            else:
                image.load()
                # Asked now: a PNG may have its EXIF behind its pixels, and Pillow turns a TIFF upright as it loads it.
                turn = _TURNS.get(_orientation(image))
                is_reduced = reduction > 1 and image.width * image.height > _REDUCED_PIXELS
                rgb = _reduced_rgb(image, reduction) if is_reduced else _to_rgb(image)
            if turn is not None:
                rgb = (rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)).transpose(turn)
            return rgb
    except ImageError:
        raise
    except Exception as error:
        detail = " ".join(str(error).split())
        raise ImageError(_broken_or_truncated(detail), f"cannot be decoded: {detail}") from None


def _decode_jpeg(image: Image.Image, data: bytes, reduction: int) -> np.ndarray | Image.Image:
    """A JPEG's pixels at 1/1, 1/2, 1/4 or 1/8 of the size, whichever is the smallest that `reduction` allows."""
    from alip.build import pixels

    denominator = max(one for one in (1, 2, 4, 8) if one <= reduction)
    colorspace = "CMYK" if image.mode == "CMYK" else "RGB"
    try:
        rgb = pixels.decode_jpeg(data, denominator, colorspace)
    except ValueError as error:
        if not _HARMLESS.search(str(error)):
            raise
        rgb = pixels.decode_jpeg(with_clean_headers(data), denominator, colorspace)
    if colorspace == "RGB":
        return rgb
    # Sound, but four colours: Pillow knows which of them are inverted.
    image.draft(None, (-(-image.width // denominator), -(-image.height // denominator)))
    return image.convert("RGB")


def _reduced_rgb(image: Image.Image, reduction: int) -> Image.Image:
    """The loaded image at 1/reduction of its size, by the mean of squares, converted strip by strip."""
    width, height = image.size
    out = Image.new("RGB", (-(-width // reduction), -(-height // reduction)))
    rows = max(1, _REDUCED_PIXELS // 8 // width // reduction) * reduction
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(height, top + rows)))
        out.paste(_to_rgb(strip).reduce(reduction), (0, top // reduction))
    return out


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ImageError("unsupported-format", "pixels of 32 bits, of which nobody knows what is white")
        grey = (values >> 8).astype(np.uint8)
        if isinstance(one := image.info.get("transparency"), int):  # of a PNG: this value is transparent
            grey[values == one] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and 1 < values.max() <= 255):  # NaN too
            raise ImageError("unsupported-format", "pixels in floating point, of which nobody knows what is white")
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    return rgb_on_white(image)


def rgb_on_white(image: Image.Image) -> Image.Image:
    """RGB; where the image is transparent, it is put on white. The one place where transparency is resolved."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        one = image.info.get("transparency")
        if isinstance(one, tuple) and max(one) > 255:  # of a PNG with 16 bits, of which Pillow has read the upper 8
            image.info["transparency"] = tuple(value >> 8 for value in one)
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """How the camera was held, 1 (upright) to 8; 1 where the image has no valid entry."""
    if "exif" not in image.info and image.format != "TIFF":
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken metadata; the pixels may be good
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
