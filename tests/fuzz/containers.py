"""Containers by their rarer rules: tar headers, streams of gzip, kinds of Parquet, encodings of tables.

Where the rules are kept the content is read, where not it is refused or named: nothing is lost in silence.
"""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alip.build.caption_files import read_captions
from alip.build.open_source import open_source
from alip.data.score_table import ScoreTable
from alip.errors import UserError
from tests.fuzz import OK, Target
from tests.fuzz.inputs import JPEG, _read_tar, _rows

NUMBERS = (0, 1, 511, 512, 513, 2**31, 2**33, 2**62, 2**63 - 1, -1, -512, -(2**62))


def _header(name: str, size: int, kind: bytes = b"0", form: int = tarfile.GNU_FORMAT) -> bytearray:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return bytearray(info.tobuf(form))


def _sealed(header: bytearray) -> bytes:
    """The header with the check sum that belongs to it."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _blocks(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def _record(key: bytes, value: bytes, odd: int | None = None) -> bytes:
    """One record of a PAX header; odd: another length than its own."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 2
    while len(b"%d" % length) + len(body) != length:
        length += 1 if len(b"%d" % length) + len(body) > length else -1
    return b"%d" % (length if odd is None else odd) + body


def pax(rng: random.Random) -> bytes:
    """A PAX header, of the next member or of all: sizes, names and sparse maps that contradict the member's."""
    key = rng.choice(
        (b"size", b"path", b"linkpath", b"mtime", b"hdrcharset", b"GNU.sparse.major", b"GNU.sparse.map", b"")
    )
    number = b"%d" % rng.choice(NUMBERS)
    value = rng.choice((number, number, b"x", b"", b"\0", b"\xff", b"../../x", b"1e9", b"x" * 10**5, b"0,512,1024,512"))
    parts = [_record(key, value, rng.choice((None, None, None, 0, 3, 10**6)))]
    if key.startswith(b"GNU"):
        parts += [
            _record(b"GNU.sparse.minor", b"0"),
            _record(b"GNU.sparse.realsize", number),
            _record(b"GNU.sparse.name", b"x"),
        ]
    body = b"".join(parts) * rng.choice((1, 1, 1, 2000))
    kind = rng.choice((b"x", b"x", b"g", b"X"))
    return _sealed(_header("PaxHeader/x", rng.choice((len(body),) * 4 + NUMBERS[:7]), kind)) + _blocks(body)


def long_name(rng: random.Random) -> bytes:
    """GNU's header for a long name or link: a name of megabytes, without an end, of nothing, several in a row."""
    name = rng.choice(
        (b"", b"\0", b"k1.jpg", b"\xff" * 300, b"a/" * 5000 + b"x.jpg\0", b"x" * 10**6, b"k\n.jpg\0", b"/abs\0")
    )
    size = rng.choice((len(name), len(name), len(name), 0, 2**33))
    return (_sealed(_header("././@LongLink", size, rng.choice((b"L", b"K")))) + _blocks(name)) * rng.choice((1, 1, 3))


def sparse(rng: random.Random) -> bytes:
    """GNU's old sparse file, with a map that overlaps, goes backwards, or has more of itself to come."""
    header = _header("sparse.jpg", 512, b"S")
    for number in range(4):
        at = 386 + 24 * number
        for place in (at, at + 12):
            header[place : place + 12] = b"%011o\0" % (rng.choice(NUMBERS[:6]) & 0o77777777777)
    header[482] = rng.choice((0, 0, 1))
    header[483:495] = b"%011o\0" % (rng.choice(NUMBERS[:6]) & 0o77777777777)
    return _sealed(header) + bytes(512) * rng.choice((1, 2))


def odd_member(rng: random.Random) -> bytes:
    """A member with a size in base 256, or of a kind that is no file."""
    kind = rng.choice((*(bytes([number]) for number in b"0123456789AVMNDZ"), b"\0", b"\xff"))
    header = _header("odd.txt", rng.choice((0, 512)), kind)
    if rng.random() < 0.6:
        number = rng.choice(NUMBERS)
        if rng.random() < 0.5:
            header[124:136] = (number % 2**88).to_bytes(12, "big")
            header[124] = 0xFF if number < 0 else 0x80
        else:
            header[124:136] = rng.choice(
                (b"           8", b"0o777       ", b"-0000000777\0", b"9" * 12, b" " * 12, b"\0" * 12)
            )
    if rng.random() < 0.2:
        header[257:265] = rng.choice((b"ustar\x0000", b"ustar  \0", b"\0" * 8, b"xxxxxxxx"))
    content = bytes(rng.choice((0, 512)))
    return (_sealed(header) if rng.random() < 0.9 else bytes(header)) + content


def _members(rng: random.Random, count: int, odd: bool) -> tuple[list[bytes], int]:
    """The members of a tar of samples, among them odd headers; how many samples no odd one stands before."""
    parts, untouched = [], 0
    for number in range(count):
        before = odd and rng.random() < 0.3
        if before:
            parts.append(rng.choice((pax, long_name, sparse, odd_member))(rng))
        untouched += not before
        fields = json.dumps({"text": f"text {number}", "caption": f"said {number}"}).encode()
        for extension, content in (("jpg", JPEG), ("json", fields)):
            parts.append(_sealed(_header(f"k{number}.{extension}", len(content))) + _blocks(content))
    return parts, untouched


def _tar_headers(rng: random.Random, folder: Path) -> Callable[[], object]:
    parts, untouched = _members(rng, rng.randint(2, 8), True)
    path = folder / "x.tar"
    path.write_bytes(b"".join(parts) + bytes(rng.choice((1024, 1024, 10_240, 512, 0))))
    return lambda: _read_tar(path, untouched)


@lru_cache(maxsize=3)
def _bomb(pack: Callable[[bytes], bytes]) -> bytes:
    """A tar whose member unpacks to 300 MB."""
    return pack(_sealed(_header("k0.jpg", 300 << 20)) + bytes(300 << 20) + bytes(1024))


def _several_streams(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A compressed tar of several members of gzip (streams of bzip2, xz), garbage or zeros behind them, odd headers."""
    name, pack = rng.choice((("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)))
    count = rng.randint(2, 8)
    data = b"".join(_members(rng, count, False)[0]) + bytes(1024)
    path = folder / f"x.tar.{name}"
    if rng.random() < 0.1:
        path.write_bytes(_bomb(pack))
        return lambda: _read_tar(path, 0)
    cuts = sorted(rng.choices(range(len(data)), k=rng.choice((0, 1, 5))))
    packed = [pack(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)])]
    if name == "gz" and rng.random() < 0.5:
        packed.insert(rng.randrange(len(packed) + 1), pack(b""))
    if name == "gz" and rng.random() < 0.4:  # a header with a name, a comment, an extra field, a check sum of its own
        flags = rng.choice((4, 8, 16, 2, 28, 0xE0))
        extra = b"".join(
            (struct.pack("<H", 2) + b"ab" if flags & 4 else b"", b"n\0" * (flags >> 3 & 1), b"c\0" * (flags >> 4 & 1))
        )
        body = zlib.compressobj(1, zlib.DEFLATED, -15)
        rest = body.compress(packed and data[: cuts[0]] if cuts else data) + body.flush()
        first = data[: cuts[0]] if cuts else data
        tail = struct.pack("<II", rng.choice((zlib.crc32(first), zlib.crc32(first), 0)), len(first))
        packed[-len(cuts) - 1] = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6) + extra + rest + tail
    behind = rng.choice((b"", b"", bytes(1000), b"garbage" * 50, b"\x1f\x8b", packed[0][:20]))
    path.write_bytes(b"".join(packed) + behind)
    return lambda: _read_tar(path, count)


def _column(rng: random.Random, texts: list[str]) -> pa.Array:
    """The texts as another type of Parquet, or something else of that many rows."""
    kinds: list[Any] = [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
    action = rng.randrange(10)
    if action == 9:
        if rng.random() < 0.2:
            return pa.array([{"bytes": rng.choice((1, "a"))}] * len(texts))
        return pa.array([rng.choice(({"bytes": b"\xff\xd8", "path": "a"}, {"path": "a.jpg"}, {}, None)) for _ in texts])
    if action < 4:
        return pa.array(texts, pa.string()).cast(kinds[action])
    if action == 4:
        return pa.array([[text] for text in texts])
    if action == 5:
        return pa.array([{"a": {"b": [text, None]}} for text in texts])
    if action == 6:
        return pa.array([None] * len(texts), rng.choice((pa.null(), pa.string(), pa.int8(), pa.list_(pa.string()))))
    if action == 7:
        one = rng.choice((1, 1.5, float("nan"), True, datetime.date(2020, 1, 1), b"\xff\xfe", 2**62))
        return pa.array([one] * len(texts))
    return pa.array([[(text, number)] for number, text in enumerate(texts)], pa.map_(pa.string(), pa.int64()))


def _parquet_kinds(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Nested types, codecs, versions, repeated and missing columns; a file that is encrypted by its marks."""
    rows = _rows(rng)
    names = ["image", "text", "caption"]
    columns = [pa.array([row[name] for row in rows]) for name in names]
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randrange(3)
        columns[at] = _column(rng, [row[names[at]] for row in rows])
    names[rng.randrange(3)] = rng.choice((*["text"] * 2, *["caption"] * 2, "", "é", "a.b", "x" * 5000, "image"))
    options: dict[str, Any] = {"compression": rng.choice(("none", "snappy", "gzip", "brotli", "lz4", "zstd"))}
    options |= {"version": rng.choice(("1.0", "2.4", "2.6")), "data_page_version": rng.choice(("1.0", "2.0"))}
    options |= {"use_dictionary": rng.random() < 0.5, "row_group_size": rng.choice((1, 7, 1000))}
    path = folder / f"{rng.choice(('t', 'gates'))}.parquet"
    try:
        pq.write_table(pa.Table.from_arrays(columns, names), path, **options)
    except (pa.ArrowException, NotImplementedError, ValueError):
        pq.write_table(pa.table({"x": pa.array([], pa.int8())}), path)
    data = bytearray(path.read_bytes())
    action = rng.randrange(8)
    if action == 0:
        data[:4] = data[-4:] = b"PARE"
    elif action == 1:
        data[-8:-4] = struct.pack("<I", rng.choice((0, 1, len(data), 2**31, 2**32 - 1)))
    path.write_bytes(data)

    def read() -> None:
        refused = 0
        for one in (_rows_of, lambda path: list(read_captions(str(path))), _scores):
            try:
                one(path)
            except UserError:
                refused += 1
        if refused == 3:
            raise UserError("refused")

    return read


def _rows_of(path: Path) -> None:
    for sample in open_source(str(path)):
        assert sample.error is None or ": " in sample.error, sample.error
        assert all(isinstance(one, str | None) for one in (sample.key, sample.text, sample.caption)), sample


def _scores(path: Path) -> None:
    with ScoreTable(path) as table:
        for batch in table.batches(list(table.columns)):
            assert batch


def _encodings(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A table in another encoding, with or without its mark: all rows right, or refused, or a fault is named."""
    form = rng.choice(("csv", "tsv", "jsonl"))
    rows = [{"image": f"{i}.jpg", "text": f"tëxt {i} 東京", "caption": f"said {i}"} for i in range(rng.randint(1, 9))]
    sign = {"csv": ",", "tsv": "\t"}.get(form)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if sign:
        lines = [sign.join(row) for row in ([*rows[0]], *([*row.values()] for row in rows))]
    text = rng.choice(("\n", "\n", "\r\n", "\r")).join(lines) + rng.choice(("\n", "", "\n\x1a", "\n\0"))
    encoding = rng.choice(
        ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "gb18030")
    )
    data = text.encode(encoding)
    if rng.random() < 0.2:
        mark = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff", b"\xff\xfe\0\0", b"\xef\xbb"))
        data = mark * rng.choice((1, 2)) + rng.choice((data, text.encode()))
    path = folder / f"t.{form}"
    path.write_bytes(data)

    def read() -> None:
        got = list(open_source(str(path)))
        right = {(row["image"], row["text"], row["caption"]) for row in rows}
        named = [sample for sample in got if sample.error]
        whole = [(sample.key, sample.text, sample.caption) for sample in got if not sample.error]
        assert named or set(whole) == right, f"{encoding}: {whole[:2]} were read, {rows[:1]} written"

    return read


TARGETS = [
    Target("container: tar headers", _tar_headers, frozenset({OK})),
    Target("container: compressed streams", _several_streams),
    Target("container: Parquet kinds", _parquet_kinds),
    Target("container: encodings of tables", _encodings),
]
