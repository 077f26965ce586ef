"""What decoding an image will take, estimated from its header: a few kilobytes can ask for gigabytes, or for hours."""

from __future__ import annotations

from PIL import Image

from alip.build.image_errors import ImageError

MAX_DECODE_BYTES = 1 << 30  # memory of one decode, in each worker process
MAX_SCANNED_PIXELS = 3_000_000_000  # pixels × passes of a JPEG; about a nanosecond for each at the least

# Bytes a pixel while a format is decoded: Pillow's own copy, and what the codec library holds beside it.
_PILLOW_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # all other modes: 4
_CODEC_BYTES = {"WEBP": 10, "GIF": 5, "TIFF": 8}
_FULL_SIZE_BYTES = 9  # of the steps behind it, where the image is not reduced as it is decoded


def check_cost(image: Image.Image, data: bytes, short_side: int) -> None:
    """ImageError(`too-costly`) for an opened but not decoded image that would take more than the limits."""
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO"):
        needed = _jpeg_bytes(image, data, pixels)
    else:
        needed = (_PILLOW_BYTES.get(image.mode, 4) + _CODEC_BYTES.get(image.format or "", 0)) * pixels
    if not short_side or short_side * 2 > min(image.size):
        needed += _FULL_SIZE_BYTES * pixels
    if needed > MAX_DECODE_BYTES:
        size = f"{image.width} × {image.height} pixels of {image.format}"
        limit = MAX_DECODE_BYTES >> 20
        raise ImageError("too-costly", f"{size} take about {needed >> 20} MB to decode, the limit is {limit} MB")


def _jpeg_bytes(image: Image.Image, data: bytes, pixels: int) -> int:
    scans = data.count(b"\xff\xda")  # at least: a thumbnail's are counted too
    if scans * pixels > MAX_SCANNED_PIXELS and scans > 2:
        raise ImageError("too-costly", f"a JPEG with {scans} scans over {image.width} × {image.height} pixels")
    if scans > 1 or image.info.get("progressive"):  # all coefficients are held, 2 bytes each
        return 2 * len(image.getbands()) * pixels
    return 0
