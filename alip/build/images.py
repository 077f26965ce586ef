"""From any picture's bytes to a JPEG that is safe to store: what goes in here, every later reader can decode."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from alip.data.jpeg import jpeg_frame, jpeg_size

# Only these are tried (a JPEG may turn out to be an MPO, several JPEGs in one): each further format is more code
# that strangers' bytes can reach.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
EXTENSIONS = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
}
MAX_PIXELS = 100_000_000
MIN_SIDE = 8
SHORT_SIDE = 256
QUALITY = 90
_ORIENTATION = 0x0112  # the EXIF tag, and what sets each of its values upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A picture that cannot be used. reason: one word for counting; the message says more."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ImagePolicy:
    """What is done to pictures before they are stored.

    short_side: pictures are shrunk (never enlarged) to it, in pixels; 0: keep the size. quality: of the JPEGs written.
    max_pixels: larger ones are refused before they are decoded. min_side: smaller ones are refused.
    any_name: take a PNG that is called .jpg.
    """

    short_side: int = SHORT_SIDE
    quality: int = QUALITY
    max_pixels: int = MAX_PIXELS
    min_side: int = MIN_SIDE
    any_name: bool = False


@dataclass(frozen=True)
class StoredImage:
    """A JPEG ready to store. untouched: these are the very bytes that came in."""

    data: bytes
    width: int
    height: int
    untouched: bool


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS, name: str = "", short_side: int = 0) -> Image.Image:
    """The picture, 8-bit RGB, upright, transparency put on white. ImageError(reason) if it cannot be used.

    name: the file's name; where its extension promises another format, the reason is `wrongly-named`.
    short_side: if given, a JPEG may come back smaller, but never below this short side (scaled decoding).
    """
    image = _open(data, max_pixels, name)
    return _load_rgb(image, short_side)


def to_jpeg(data: bytes, policy: ImagePolicy | None = None, name: str = "") -> StoredImage:
    """The picture as a JPEG by `policy`: the same bytes where nothing has to change, else decoded, shrunk, encoded.

    ImageError(reason) if it cannot be used.
    """
    from alip.build import pixels  # torch takes seconds to load, and most who use this module only decode

    policy = policy or ImagePolicy()
    image = _open(data, policy.max_pixels, "" if policy.any_name else name)
    if min(image.size) < policy.min_side:
        raise ImageError("tiny", f"{image.width} × {image.height} pixels, shorter than {policy.min_side}")
    width, height = image.size
    scale = policy.short_side / min(image.size) if policy.short_side else 1.0
    upright = image.format == "JPEG" and _orientation(image) == 1
    keep = scale >= 1 and upright and _is_plain_jpeg(data)
    keep = keep and image.info.get("adobe_transform", 1) == 1  # others are not YCbCr inside
    if upright and image.mode == "RGB" and scale > 0.5:
        rgb = _decode_plain(data)  # also of those that stay as they are: this finds the broken ones
    else:  # Pillow can decode a JPEG at 1/2, 1/4 or 1/8 of its size, and all else
        rgb = pixels.from_pillow(_load_rgb(image, policy.short_side))
    if keep:
        return StoredImage(data, width, height, untouched=True)
    if (rgb.shape[2] - rgb.shape[1]) * (width - height) < 0:  # it was turned upright
        width, height = height, width
    if scale < 1:
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = pixels.shrink(rgb, width, height)
    stored = pixels.encode(rgb, policy.quality)
    if not _is_plain_jpeg(stored) or jpeg_size(stored) != (width, height):
        raise ImageError("not-encoded", "the encoder did not write a complete JPEG")
    return StoredImage(stored, width, height, untouched=False)


def _decode_plain(data: bytes):
    """(3, height, width) uint8 of a three-colour JPEG."""
    from alip.build import pixels

    try:
        return pixels.decode_rgb(data)
    except RuntimeError as error:
        detail = str(error).splitlines()[0].rpartition(", ")[2]  # torchvision's own file and line come first
        raise ImageError(_broken_or_truncated(detail), f"cannot be decoded: {detail}") from None


def _open(data: bytes, max_pixels: int, name: str) -> Image.Image:
    """The picture's header is read, its pixels are not."""
    if not data:
        raise ImageError("empty", "no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's advice on sizes and odd metadata; the limit is ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError("not-an-image", f"not one of {', '.join(FORMATS)}") from None
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
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ImageError("animated", f"{image.n_frames} frames")
    return image


def _broken_or_truncated(detail: str) -> str:
    return "truncated" if "truncated" in detail.lower() else "broken"


def _load_rgb(image: Image.Image, short_side: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if short_side and image.format in ("JPEG", "MPO"):
                scale = short_side / min(image.size)
                if scale < 1:  # libjpeg decodes straight to 1/2, 1/4 or 1/8, whichever still covers the request
                    image.draft(None, tuple(int(np.ceil(side * scale)) for side in image.size))
            image.load()
            turn = _TURNS.get(_orientation(image))
            if turn is not None:
                image = image.transpose(turn)
            return _to_rgb(image)
    except Exception as error:
        raise ImageError(_broken_or_truncated(str(error)), f"cannot be decoded: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.clip(np.nan_to_num(np.asarray(image)), 0, 255).astype(np.uint8)).convert("RGB")
    return rgb_on_white(image)


def rgb_on_white(image: Image.Image) -> Image.Image:
    """RGB; where the image is transparent, it is put on white. The one place where transparency is resolved."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """How the camera was held, 1 (upright) to 8; 1 where nothing sensible is said. (A PNG says so after its pixels.)"""
    if "exif" not in image.info and image.format != "TIFF":
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken metadata says nothing; the pixels may be good
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_plain_jpeg(data: bytes) -> bool:
    """Baseline or progressive, 8 bits, three components, complete to its end marker: the kind that every decoder
    (libjpeg-turbo, nvJPEG) takes."""
    frame = jpeg_frame(data)
    if frame is None or not data.endswith(b"\xff\xd9"):
        return False
    _, _, components, bits, marker = frame
    return components == 3 and bits == 8 and marker in (0xC0, 0xC1, 0xC2)
