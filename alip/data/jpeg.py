"""What a JPEG's header says, read without decoding."""

from __future__ import annotations


def jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Width and height of a JPEG from its frame header; None if the bytes are no JPEG with such a header."""
    frame = jpeg_frame(data)
    return frame[:2] if frame else None


def jpeg_frame(data: bytes | memoryview) -> tuple[int, int, int, int, int] | None:
    """(width, height, components, bits, marker) of the first frame header; None if there is none."""
    if len(data) < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return None
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = data[at + 5] << 8 | data[at + 6]
            width = data[at + 7] << 8 | data[at + 8]
            return width, height, data[at + 9], data[at + 4], marker
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            at += 2
            continue
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None
