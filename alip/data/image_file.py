"""Opening an image file with Pillow: the formats that this project reads, and no others."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

# Pillow tries only these (a JPEG may turn out to be an MPO, several JPEGs in one): each further format is more code
# that strangers' bytes can reach; for one of them Pillow starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def open_image(source: bytes | str | Path, formats: Sequence[str] = FORMATS) -> Image.Image:
    """The image of these bytes, or in this file; its pixels are not read yet.

    Raises UnidentifiedImageError if it has none of the formats, and whatever else Pillow raises for damaged headers.
    """
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except UnidentifiedImageError:  # Pillow's own message holds an address in memory, another one in each run
        raise UnidentifiedImageError(f"not one of {', '.join(formats)}") from None
