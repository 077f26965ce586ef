"""Mutations of what `data2rec.py` reads: images, tars, tables, annotations, captions files, folders, texts, patterns.

No case may lose a sample in silence: what does not come out whole has a reject that names it.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import random
import tarfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow
import pyarrow.parquet
from PIL import Image

from alip.build import writer
from alip.build.caption_files import read_captions
from alip.build.caption_table import CaptionTable
from alip.build.images import EXTENSIONS, OTHER_IMAGES, ImageError, ImagePolicy, decode_image, to_jpeg
from alip.build.open_source import expand, open_source
from alip.build.prepare import Policy, PreparedSample, prepare
from alip.build.sources import Sample
from alip.data.decoders import check_decodes
from alip.data.jpeg import read_plain_jpeg
from alip.data.recordio import unpack
from alip.data.shards import load_manifest, read_texts
from alip.tokens import unpack_label
from tests.fuzz import OK, Target
from tests.fuzz.mutations import ODD_VALUES, damage, json_bytes
from tests.helpers.shards import encoded, make_image

# fmt: off
NAMES = [
    "a", "b c", "ü", "東京", "x" * 100, ".hidden", "a.b", "\udcff", "{1..3}", "[a]", "*", "~", "-n", "a\tb", "a\nb",
]
SIGNS = [
    *(chr(i) for i in range(0x120)), *"\ufeff\u2028\u2029\u200b\u3000東京🙂\ud800\udfff", "&amp;", "&#0;",
    "<end_of_text>", "Ã©", "Â\xa0", "word ", "a" * 300, "東京" * 300,
]
PATTERNS = [
    "a", "a", "{0..1}", "{0..1}", "{a,b}", "{0..99999999999}", "{", "}", "*", "*", "[", "]", ".tar", ".tar", "{,}",
    "{1..0}", "?", "**/", "\0",
]
# fmt: on
JPEG = encoded(make_image(1), quality=90)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "x.tar": bytes,
    "x.tar.gz": lambda data: gzip.compress(data, 1),
    "x.tar.bz2": bz2.compress,
    "x.tar.xz": lambda data: lzma.compress(data, preset=0),
}


@lru_cache(maxsize=1)
def images() -> list[tuple[str, bytes]]:
    """(name, bytes) of small images of every format that is read."""
    frames = [make_image(number, 50, 40) for number in range(3)]
    animated = {"save_all": True, "append_images": frames[1:]}
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = frames[0].convert("P")
    forms: list[tuple[str, Image.Image, str, dict]] = [
        ("a.jpg", make_image(1, 90, 60), "JPEG", {"quality": 90}),
        ("b.jpg", make_image(2, 90, 60), "JPEG", {"progressive": True, "exif": exif}),
        ("c.jpg", make_image(3, 90, 60).convert("L"), "JPEG", {}),
        ("d.jpg", make_image(4, 90, 60).convert("CMYK"), "JPEG", {}),
        ("e.jpg", make_image(5, 700, 600), "JPEG", {"subsampling": 0}),
        ("a.png", frames[0], "PNG", {}),
        ("b.png", palette, "PNG", {"transparency": 3}),
        ("c.png", frames[0].convert("RGBA"), "PNG", {"exif": exif}),
        ("d.png", Image.new("RGB", (70_000, 9)), "PNG", {}),
        ("a.webp", frames[0], "WEBP", {}),
        ("b.webp", frames[0], "WEBP", {"lossless": True}),
        ("a.gif", palette, "GIF", {}),
        ("b.gif", frames[0], "GIF", animated),
        ("a.bmp", frames[0], "BMP", {}),
        ("a.tif", frames[0], "TIFF", {"compression": "tiff_lzw"}),
        ("b.tif", frames[0], "TIFF", {"compression": "jpeg"}),
        ("c.tif", frames[0], "TIFF", animated),
    ]
    return [(name, encoded(image, form, **options)) for name, image, form, options in forms]


def _image(rng: random.Random, folder: Path) -> Callable[[], object]:
    name, data = rng.choice(images())
    header = rng.random() < 0.5
    head = damage(rng, data[:200], 0) + data[200:] if header else damage(rng, data)
    path = folder / name
    path.write_bytes(head)
    policy = ImagePolicy(short_side=rng.choice((0, 24, 256)), max_pixels=rng.choice((1_000_000, 100_000_000)))
    return lambda: _read_image(path, policy)


def _read_image(path: Path, policy: ImagePolicy) -> None:
    data = path.read_bytes()
    try:
        stored = to_jpeg(data, policy, path.name)
    except ImageError as error:
        assert error.reason and "\n" not in error.reason, error
        return
    plain = read_plain_jpeg(stored.data)
    assert (plain.width, plain.height) == (stored.width, stored.height) and stored.untouched == (stored.data == data)
    assert decode_image(stored.data).size == (stored.width, stored.height)
    (error,) = check_decodes([stored.data])
    assert error is None, error


def _tar_bytes(count: int, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as tar:
        folder = "a-folder-with-a-long-name-" * rng.choice((0, 0, 6))
        for number in range(count):
            fields = json.dumps({"text": f"text {number}", "caption": f"said {number}"}).encode()
            for extension, content in (("jpg", JPEG), ("json", fields)):
                info = tarfile.TarInfo(f"{folder}k{number}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _tar(rng: random.Random, folder: Path) -> Callable[[], object]:
    count = rng.randint(1, 12)
    name = rng.choice(list(PACK))
    path = folder / name
    data = _tar_bytes(count, rng)
    if name == "x.tar" or rng.random() < 0.6:
        data = damage(rng, data)
        path.write_bytes(PACK[name](data))
        count = min(count, _samples_of_sound(data, count))
    else:
        path.write_bytes(damage(rng, PACK[name](data)))
    return lambda: _read_tar(path, count)


def _samples_of_sound(data: bytes, count: int) -> int:
    """How many samples a tar has in which nothing shows damage: whole members alone may have been cut out of it."""
    with contextlib.suppress(Exception), tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        end = members[-1].offset_data + -(-members[-1].size // 512) * 512 if members else 0
        if len(data) >= end + 1024 and len(data) % 512 == 0 and not data[end:].strip(b"\0"):
            return len({member.name.partition(".")[0] for member in members})
    return count


def _read_tar(path: Path, count: int) -> None:
    whole, other = set(), 0
    for sample in open_source(str(path), "webdataset"):
        number = sample.key.rpartition("k")[2]
        content = None
        with contextlib.suppress(ValueError, OSError):
            content = sample.image
        right = content == JPEG and (sample.text, sample.caption) == (f"text {number}", f"said {number}")
        if right and sample.error is None:
            whole.add(number)
        else:  # it is named, or its content has changed, which a tar cannot tell
            other += 1
            assert sample.error is None or ": " in sample.error, sample.error
    assert other or len(whole) >= count, f"{count - len(whole)} samples of {count} are lost in silence"


def _rows(rng: random.Random) -> list[dict[str, str]]:
    return [{"image": f"{i}.jpg", "text": f"text, {i}", "caption": f"said {i}"} for i in range(rng.randint(2, 30))]


def _lines(form: str, rows: list[dict[str, str]]) -> list[bytes]:
    if form == "jsonl":
        return [json.dumps(row).encode() for row in rows]
    sign = "\t" if form == "tsv" else ","
    cells = [[*rows[0]], *([*row.values()] for row in rows)]
    return [sign.join(f'"{c}"' if form == "csv" and "," in c else c for c in one).encode() for one in cells]


def _table(rng: random.Random, folder: Path) -> Callable[[], object]:
    """One row of a table is damaged, but not its end: all others have to come out as they are."""
    form = rng.choice(("csv", "tsv", "jsonl"))
    rows = _rows(rng)
    lines = _lines(form, rows)
    broken = rng.randrange(len(rows))
    at = broken + (form != "jsonl")
    lines[at] = damage(rng, lines[at]).replace(b"\n", b" ")
    path = folder / f"t.{form}"
    path.write_bytes(b"\n".join(lines) + rng.choice((b"\n", b"", b"\n\n")))
    return lambda: _read_table(path, rows, broken)


def _read_table(path: Path, rows: list[dict[str, str]], broken: int) -> None:
    got = list(open_source(str(path)))
    there = {(sample.key, sample.text, sample.caption) for sample in got if not sample.error}
    for number, row in enumerate(rows):
        whole = (row["image"], row["text"], row["caption"]) in there
        assert whole or number == broken, f"row {number} is lost to the damage in row {broken}"


def _parquet(rng: random.Random, folder: Path) -> Callable[[], object]:
    rows = _rows(rng)
    out = io.BytesIO()
    compression = rng.choice(("none", "snappy", "zstd"))
    if rng.random() < 0.5:  # images in the table itself
        rows = [row | {"image": {"bytes": row["text"].encode() * 20, "path": row["image"]}} for row in rows]
    table = pyarrow.Table.from_pylist([row | {"other": row["text"] * 20} for row in rows])
    pyarrow.parquet.write_table(table, out, row_group_size=10, compression=compression, write_page_checksum=True)
    path = folder / "t.parquet"
    data = out.getvalue()
    footer = data[-2000:] if rng.random() < 0.6 and len(data) > 3000 else b""
    path.write_bytes(damage(rng, data[: len(data) - len(footer)]) + footer)
    return lambda: _read_parquet(path, len(rows))


def _read_parquet(path: Path, count: int) -> None:
    got = list(open_source(str(path)))
    assert len(got) >= count or any(sample.error for sample in got), f"{count - len(got)} rows are lost in silence"


COCO = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)],
    "annotations": [{"id": i, "image_id": i // 2, "caption": f"said {i}"} for i in range(8)],
}
KARPATHY = {
    "images": [
        {"filename": f"{i}.jpg", "filepath": "v", "split": "train", "cocoid": i, "sentences": [{"raw": f"said {i}"}]}
        for i in range(4)
    ]
}


def _annotations(rng: random.Random, folder: Path) -> Callable[[], object]:
    source_type, content = rng.choice((("coco", COCO), ("karpathy", KARPATHY)))
    path = folder / "a.json"
    path.write_bytes(json_bytes(rng, content))
    given = source_type if rng.random() < 0.7 else None
    return lambda: [sample.key for sample in open_source(str(path), given)]


PAIRS = [{"image_id": f"k{i}", "caption": f"said {i}"} for i in range(20)]


def _captions(rng: random.Random, folder: Path) -> Callable[[], object]:
    form = rng.choice(("json", "jsonl", "tsv", "csv", "parquet"))
    path = folder / f"c.{form}"
    if form == "json":
        path.write_bytes(json_bytes(rng, PAIRS))
    elif form == "jsonl":
        lines = [json.dumps(pair).encode() for pair in PAIRS]
        lines[rng.randrange(20)] = json_bytes(rng, PAIRS[0])
        path.write_bytes(b"\n".join(lines))
    elif form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), path)
        path.write_bytes(damage(rng, path.read_bytes()))
    else:
        lines = _lines(form, PAIRS)
        path.write_bytes(damage(rng, b"\n".join(lines)))
    if rng.random() < 0.03:
        path.unlink()
        rng.choice((os.mkfifo, os.mkdir))(path)
    return lambda: _read_captions(path, folder / "index.sqlite")


def _read_captions(path: Path, index: Path) -> None:
    index.unlink(missing_ok=True)
    pairs = dict(read_captions(str(path)))
    table = CaptionTable([str(path)], index)
    assert all(table.get(key) == [caption] for key, caption in pairs.items())


def _folder(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A tree with odd names, links, pipes and files of other formats; every image in it has to be accounted for."""
    root = folder / "tree"
    root.mkdir()
    folders, images = [root], 0
    for number in range(rng.randint(1, 15)):
        where = rng.choice(folders)
        extension = rng.choice([*EXTENSIONS, *sorted(OTHER_IMAGES)[:5], "txt", "json", "md", ""])
        path = where / f"{rng.choice(NAMES)}{number}.{extension}"
        action = rng.randrange(8)
        if action == 0:
            path.mkdir()
            folders.append(path)
            continue
        if action == 1:
            path.symlink_to(rng.choice([*folders, folder / "gone"]))
            images += not path.is_dir() and extension in (*EXTENSIONS, *OTHER_IMAGES)
            continue
        images += extension in (*EXTENSIONS, *OTHER_IMAGES)
        if action == 2:
            os.mkfifo(path)
        else:
            path.write_bytes(rng.choice((JPEG, b"", damage(rng, JPEG), b'{"text": "x"}', b"\xff")))
            with contextlib.suppress(OSError):
                path.with_suffix(".txt").write_text(rng.choice(("a text", "", "x\n\n")))
    return lambda: _read_folder(root, images)


def _read_folder(root: Path, images: int) -> None:
    source = open_source(str(root), "folder")
    samples = list(source)
    assert source.describe() == open_source(str(root), "folder").describe()
    named = sum(not (sample.error or "").startswith("broken-input") for sample in samples)
    assert named >= images, f"{images - named} images of {images} are lost in silence"
    results = prepare(samples, Policy(missing_caption="use-text", missing_text="skip"))
    assert len(results) == len(samples)


def _texts(rng: random.Random, folder: Path) -> Callable[[], object]:
    texts = ["".join(rng.choices(SIGNS, k=rng.randint(0, 20))) for _ in range(8)]
    (folder / "texts.json").write_text(json.dumps(texts))
    return lambda: _read_texts(json.loads((folder / "texts.json").read_text()))


def _read_texts(texts: list[str]) -> None:
    samples = [Sample(str(i), "here", JPEG, "a.jpg", text, "a caption") for i, text in enumerate(texts)]
    results = prepare(samples, Policy())
    assert [int(one.row[0] if isinstance(one, PreparedSample) else one.key) for one in results] == [*range(len(texts))]
    for text, result in zip(texts, results):
        if isinstance(result, PreparedSample):
            ids = unpack_label(result.label)[0]
            assert np.array_equal(ids, open_clip.tokenize([text])[0].numpy()), repr(text)
            assert np.array_equal(ids, open_clip.tokenize([result.row[1]])[0].numpy()), repr(text)
        else:
            assert result.reason in ("bad-text", "missing-text"), result
            lone = any("\ud800" <= letter <= "\udfff" for letter in text)
            assert lone or open_clip.tokenize([text])[0][1] == 49407, f"{text!r} is rejected as {result.reason}"


def _pattern(rng: random.Random, folder: Path) -> Callable[[], object]:
    for name in ("a0.tar", "a1.tar", "b.tar"):
        (folder / name).touch()
    pattern = "".join(rng.choices(PATTERNS, k=rng.randint(1, 8)))
    return lambda: expand([str(folder / pattern)])


def _build(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A whole build from samples of which some are damaged: every one is in the shards or in the rejects."""
    rows = []
    for number in range(rng.randint(4, 16)):
        fate = rng.randrange(6)  # below 2: a damaged image; 1 or 5: an odd field
        name, data = rng.choice(images()) if fate < 4 else (f"{number}.jpg", JPEG)
        name = f"{number}-{name}"
        (folder / name).write_bytes(damage(rng, data) if fate < 2 else data)
        row: dict[str, Any] = {
            "key": f"k{number}",
            "image": name,
            "text": f"text {number}",
            "caption": f"said {number}",
        }
        if fate in (1, 5):
            row[rng.choice([*row])] = rng.choice(ODD_VALUES)
        rows.append(row)
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seed = rng.choice((None, 3))
    return lambda: _run_build(folder, len(rows), seed)


def _run_build(folder: Path, count: int, seed: int | None) -> None:
    writer.build(
        open_source(str(folder / "t.jsonl")),
        folder / "out" / "set",
        policy=Policy(missing_caption="use-text"),
        workers=0,
        samples_per_shard=5,
        shuffle_seed=seed,
        overwrite=True,
        quiet=True,
    )
    manifest = load_manifest(folder / "out" / "set")
    rejects = (folder / "out" / "set-rejects.jsonl").read_text().splitlines()
    assert manifest.samples + len(rejects) == count, f"{count} samples, {manifest.samples} and {len(rejects)} rejects"
    assert sum(1 for _ in read_texts(manifest)) == manifest.samples
    images = []
    for shard in range(len(manifest.shards)):
        with manifest.open_shard(shard) as reader:
            images += [bytes(unpack(reader[i])[1]) for i in range(manifest.shards[shard].samples)]
    assert not any(check_decodes(images))


TARGETS = [
    Target("image", _image, frozenset({OK})),
    Target("tar", _tar, frozenset({OK})),
    Target("table", _table),
    Target("table, Parquet", _parquet),
    Target("annotations", _annotations),
    Target("captions file", _captions),
    Target("folder", _folder, frozenset({OK})),
    Target("texts", _texts, frozenset({OK})),
    Target("pattern", _pattern),
    Target("build", _build),
]
