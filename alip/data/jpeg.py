"""A JPEG's markers, read without decoding (ITU-T T.81, annex B)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STANDALONE = (0x01, *range(0xD0, 0xD8))  # markers without a length
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive: Huffman coding, 8 or 12 bits
_SAMPLINGS = ((1, 1), (2, 1), (2, 2), (1, 2), (4, 1))  # 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1
_COMPONENT_IDS = ((1, 2, 3), (0, 1, 2))  # others are taken for RGB by some decoders and for YCbCr by others


def jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Width and height of a JPEG from its frame header; None if the bytes are no JPEG with such a header."""
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
            return data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6]
        if marker in _STANDALONE:
            at += 2
            continue
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


class OddJpeg(ValueError):
    """A JPEG that some decoder may refuse or show differently. The message names the unusual part."""


@dataclass(frozen=True)
class PlainJpeg:
    """What `read_plain_jpeg` found. coefficients: 8 × 8 blocks × 64 over all components, what a progressive JPEG's
    decoder has to hold; scans: passes over the image."""

    width: int
    height: int
    progressive: bool
    scans: int
    coefficients: int


def read_plain_jpeg(data: bytes) -> PlainJpeg:
    """Walks every marker of a JPEG from start to end; OddJpeg unless it is of the form that every decoder takes.

    That form: no byte between segments, known segments only, Huffman-coded baseline or progressive, 8 bits, YCbCr
    with one of the five common samplings, tables that are complete and present, all components in the scans, and
    nothing behind the end marker. The entropy-coded data is skipped, not decoded.
    """
    return _Walk(data).run()


def with_clean_headers(data: bytes) -> bytes:
    """The same JPEG without what its headers do not need: stray bytes between segments, application data and comments.
    JFIF and Adobe segments stay, as the colours depend on them, with a known version and transform."""
    out = [b"\xff\xd8"]
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker in (0x00, 0xFF) or marker in _STANDALONE:
            at += 1
            continue
        if marker in (0xDA, 0xD9):
            out.append(data[at:])
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segment = bytearray(data[at:end])
        if marker == 0xE0 and segment[4:9] == b"JFIF\0" and len(segment) >= 16:
            segment[9] = 1
        elif marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) >= 16:
            segment[15] = min(segment[15], 2)
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            segment.clear()
        out.append(bytes(segment))
        at = max(end, at + 2)
    return b"".join(out)


def _possible_markers(data: bytes) -> np.ndarray:
    """Where entropy-coded data may end: every 0xFF byte that is no stuffed zero and no restart marker."""
    values = np.frombuffer(data, np.uint8)
    at = np.flatnonzero(values[:-1] == 0xFF)
    following = values[at + 1]
    return at[(following != 0) & ((following < 0xD0) | (following > 0xD7))]


class _Walk:
    """One pass over the markers."""

    def __init__(self, data: bytes):
        self.data = data
        self.frame: tuple[int, int, int, list[tuple[int, int, int, int]]] | None = None  # marker, width, height, parts
        self.quantisation: set[int] = set()
        self.huffman: set[tuple[int, int]] = set()
        self.scanned: set[int] = set()
        self.scans = 0
        self.adobe: int | None = None

    def run(self) -> PlainJpeg:
        data = self.data
        if data[:2] != b"\xff\xd8":
            raise OddJpeg("no start marker")
        ends = _possible_markers(data)
        at = 2
        while True:
            if at + 2 > len(data):
                raise OddJpeg("it ends without an end marker")
            if data[at] != 0xFF:
                raise OddJpeg(f"stray bytes at byte {at}")
            marker = data[at + 1]
            if marker == 0xD9:
                break
            body = self._body(at, marker)
            at += 4 + len(body)
            self._segment(marker, body)
            if marker == 0xDA:
                following = np.searchsorted(ends, at)
                if following == len(ends):
                    raise OddJpeg("it ends within a scan")
                if ends[following] == at:
                    raise OddJpeg("an empty scan")
                at = int(ends[following])
        if at + 2 != len(data):
            raise OddJpeg(f"{len(data) - at - 2} bytes behind its end marker")
        return self._result()

    def _body(self, at: int, marker: int) -> bytes:
        length = int.from_bytes(self.data[at + 2 : at + 4], "big")
        if marker < 0xC0 or marker in _STANDALONE or length < 2 or at + 2 + length > len(self.data):
            raise OddJpeg(f"marker {marker:02X} with length {length} at byte {at}")
        return self.data[at + 4 : at + 2 + length]

    def _segment(self, marker: int, body: bytes) -> None:
        if marker in _FRAMES:
            self._frame(marker, body)
        elif marker == 0xDB:
            self._quantisation(body)
        elif marker == 0xC4:
            self._huffman(body)
        elif marker == 0xDA:
            self._scan(body)
        elif marker == 0xDD:
            if len(body) != 2:
                raise OddJpeg("a restart interval of another length")
        elif marker == 0xEE and body[:5] == b"Adobe":
            self.adobe = body[11] if len(body) >= 12 else -1
        elif marker != 0xFE and not 0xE0 <= marker <= 0xEF:
            raise OddJpeg(f"a segment of marker {marker:02X}")

    def _frame(self, marker: int, body: bytes) -> None:
        if self.frame is not None:
            raise OddJpeg("two frames")
        if len(body) != 15 or body[0] != 8 or body[5] != 3:
            raise OddJpeg("not 8 bits with three components")
        height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        if not width or not height:
            raise OddJpeg("a frame without a size")
        parts = [(body[i], body[i + 1] >> 4, body[i + 1] & 15, body[i + 2]) for i in (6, 9, 12)]
        samplings = [part[1:3] for part in parts]
        if samplings[0] not in _SAMPLINGS or samplings[1:] != [(1, 1), (1, 1)]:
            raise OddJpeg(f"an unusual sampling {samplings}")
        if tuple(part[0] for part in parts) not in _COMPONENT_IDS:
            raise OddJpeg("unusual component numbers")
        self.frame = (marker, width, height, parts)

    def _quantisation(self, body: bytes) -> None:
        if not body or len(body) % 65:
            raise OddJpeg("a quantisation table of another length")
        for at in range(0, len(body), 65):
            if body[at] > 3 or 0 in body[at + 1 : at + 65]:
                raise OddJpeg("an unusual quantisation table")
            self.quantisation.add(body[at])

    def _huffman(self, body: bytes) -> None:
        at = 0
        while at < len(body):
            counts = body[at + 1 : at + 17]
            where, values = (body[at] >> 4, body[at] & 15), body[at + 17 : at + 17 + sum(counts)]
            if len(counts) < 16 or len(values) != sum(counts) or where[0] > 1 or where[1] > 3 or not values:
                raise OddJpeg("an unusual Huffman table")
            free = 1  # codes left of each length: a table may not promise more than there are, nor use the last one
            for count in counts:
                free = 2 * free - count
                if free < 0:
                    raise OddJpeg("a Huffman table with too many codes")
            if free == 0 or len(set(values)) != len(values):
                raise OddJpeg("an unusual Huffman table")
            if where[0] == 0 and max(values) > 11:
                raise OddJpeg("a Huffman table for more than 8 bits")
            self.huffman.add(where)
            at += 17 + len(values)
        if not body:
            raise OddJpeg("an empty Huffman table")

    def _scan(self, body: bytes) -> None:
        if self.frame is None:
            raise OddJpeg("a scan before the frame")
        marker, _, _, parts = self.frame
        count = body[0] if body else 0
        if not 1 <= count <= 3 or len(body) != 4 + 2 * count:
            raise OddJpeg("an unusual scan")
        numbers = {part[0]: part[3] for part in parts}
        start, end, high, low = body[-3], body[-2], body[-1] >> 4, body[-1] & 15
        progressive = marker == 0xC2
        if not progressive and (start, end, high, low) != (0, 63, 0, 0):
            raise OddJpeg("a sequential scan of a part of the coefficients")
        if progressive and not (
            start <= end <= 63 and (end == 0 if start == 0 else count == 1) and low <= 13 and high in (0, low + 1)
        ):
            raise OddJpeg("an unusual progressive scan")
        seen = set()
        for i in range(count):
            number, dc, ac = body[1 + 2 * i], body[2 + 2 * i] >> 4, body[2 + 2 * i] & 15
            if number not in numbers or number in seen or numbers[number] not in self.quantisation:
                raise OddJpeg("a scan of a component that is not there")
            needs_dc = start == 0 and high == 0
            needs_ac = end > 0
            if (needs_dc and (0, dc) not in self.huffman) or (needs_ac and (1, ac) not in self.huffman):
                raise OddJpeg("a scan without its Huffman table")
            seen.add(number)
        if not progressive and seen & self.scanned:
            raise OddJpeg("a component that is scanned twice")
        self.scanned |= seen
        self.scans += 1

    def _result(self) -> PlainJpeg:
        if self.frame is None or len(self.scanned) < 3:
            raise OddJpeg("not all components are there")
        if self.adobe not in (None, 1):
            raise OddJpeg("its colours are not YCbCr")
        marker, width, height, parts = self.frame
        wide, high = max(part[1] for part in parts), max(part[2] for part in parts)
        units = -(-width // (8 * wide)) * -(-height // (8 * high))
        coefficients = 64 * units * sum(part[1] * part[2] for part in parts)
        return PlainJpeg(width, height, marker == 0xC2, self.scans, coefficients)
