"""Tars: nothing is lost in silence, whatever is damaged, concatenated, compressed or linked."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest

from alip.build.open_source import open_source
from alip.build.sources import Fields
from tests.helpers.shards import encoded, make_image

JPEG = encoded(make_image(1))
BLOCK = 512


def tar_bytes(keys, extra=None) -> bytes:
    """Samples of an image and a JSON each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key in keys:
            for extension, content in (("jpg", JPEG), ("json", json.dumps({"text": f"text of {key}"}).encode())):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        if extra:
            extra(tar)
    return buffer.getvalue()


def headers(data: bytes) -> list[int]:
    return [info.offset for info in tarfile.open(fileobj=io.BytesIO(data))]


def read(tmp_path, data: bytes, name="x.tar", **options):
    (tmp_path / name).write_bytes(data)
    samples = list(open_source(str(tmp_path / name), **options))
    good = [sample for sample in samples if sample.error is None]
    assert all(sample.image == JPEG and sample.text == f"text of {sample.key}" for sample in good)
    return [sample.key for sample in good], [sample.error for sample in samples if sample.error]


PACK = {"x.tar": bytes, "x.tar.gz": gzip.compress, "x.tar.bz2": bz2.compress, "x.tar.xz": lzma.compress}
KEYS = [f"k{i}" for i in range(6)]


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("how", ["zeroed", "flipped"])
def test_a_damaged_header_costs_the_sample_beside_it_and_is_named(tmp_path, name, how):
    data = bytearray(tar_bytes(KEYS))
    at = headers(bytes(data))[6]  # of k3.jpg
    data[at : at + BLOCK] = bytes(BLOCK) if how == "zeroed" else bytes(255 - one for one in data[at : at + BLOCK])
    keys, errors = read(tmp_path, PACK[name](bytes(data)), name)
    assert keys == ["k0", "k1", "k4", "k5"]
    assert sum(error.startswith("broken-input") for error in errors) == 1 and f"byte {at:,}" in errors[1]
    assert sum(error.startswith("damaged-sample") for error in errors) == 2  # k2 beside it, and what is left of k3


@pytest.mark.parametrize("name", PACK)
def test_concatenated_tars_are_read_one_after_the_other(tmp_path, name):
    data = tar_bytes(KEYS[:3]) + tar_bytes(KEYS[3:])
    assert read(tmp_path, PACK[name](data), name) == (KEYS, [])


def test_concatenated_compressed_tars(tmp_path):
    data = gzip.compress(tar_bytes(KEYS[:3])) + gzip.compress(tar_bytes(KEYS[3:]))
    assert read(tmp_path, data, "x.tar.gz") == (KEYS, [])


def test_zeroed_small_members_are_no_end(tmp_path):
    data = bytearray(tar_bytes(KEYS))
    at, behind = headers(bytes(data))[5], headers(bytes(data))[6]  # k2.json whole
    data[at:behind] = bytes(behind - at)
    keys, errors = read(tmp_path, bytes(data))
    assert keys == ["k0", "k1", "k4", "k5"] and any("broken-input" in error for error in errors)


def test_a_wrong_checksum_of_gzip_is_named(tmp_path):
    data = bytearray(gzip.compress(tar_bytes(KEYS)))
    data[-8] ^= 1
    keys, errors = read(tmp_path, bytes(data), "x.tar.gz")
    assert keys == KEYS[: len(keys)] and any(error.startswith("broken-input") for error in errors)


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8])
def test_a_cut_file_is_named(tmp_path, name, cut):
    data = PACK[name](tar_bytes(KEYS).rstrip(b"\0") + bytes(1024))
    keys, errors = read(tmp_path, data[: int(len(data) * cut)], name)
    assert len(keys) < 6 and errors[-1].startswith("broken-input")


def test_a_missing_end_mark_is_named(tmp_path):
    data = tar_bytes(KEYS).rstrip(b"\0")
    data += bytes(-len(data) % BLOCK)
    keys, errors = read(tmp_path, data)
    assert keys == KEYS[:5] and "end mark" in errors[-1]


def test_links_and_special_files_are_named(tmp_path):
    def links(tar):
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"Q")):
            info = tarfile.TarInfo(f"l{number}.jpg")
            info.type, info.linkname = kind, "k0.jpg"
            tar.addfile(info)
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)

    keys, errors = read(tmp_path, tar_bytes(KEYS, links))
    assert keys == KEYS and [error.split(":")[0] for error in errors][:4] == ["no-regular-file"] * 4
    assert "a link to k0.jpg" in errors[0]


def test_of_two_texts_the_one_with_a_plain_name_counts_and_two_alike_are_named(tmp_path):
    texts = [("a.de.txt", b"de"), ("a.txt", b"a"), ("b.de.txt", b"de"), ("c.txt", b"1"), ("c.txt", b"2")]
    texts += [("d.x.json", b'{"text": "x"}'), ("d.y.json", b'{"text": "y"}')]
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, content in texts:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    got = {sample.key: (sample.text, (sample.error or "")[:10]) for sample in open_source(str(tmp_path / "t.tar"))}
    assert got == {"a": ("a", ""), "b": ("de", ""), "c": (None, "ambiguous:"), "d": (None, "ambiguous:")}


def test_the_hidden_files_of_macos_break_no_sample(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in (f"{dots}{key}.{end}" for key in KEYS for end in ("jpg", "json") for dots in ("d/._", "d/")):
            content = b"AppleDouble" if "._" in name else JPEG if "jpg" in name else b'{"text": "said"}'
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    source = open_source(str(tmp_path / "x.tar"))
    samples = list(source)
    good = [(sample.key, sample.text) for sample in samples if not sample.error]
    assert good == [(f"d/{key}", "said") for key in KEYS]
    assert sum(sample.error is not None for sample in samples) == len(KEYS)
    assert "hidden-file: d/._k0.jpg" in samples[0].error
    parts = [sample for cut in source.divide(0, 2) for sample in source.read_part(0, cut)]
    assert [(one.key, one.number) for one in parts] == [(one.key, one.number) for one in samples]


def test_images_of_other_formats_are_named(tmp_path):
    def other(tar):
        info = tarfile.TarInfo("z.heic")
        tar.addfile(info)

    _, errors = read(tmp_path, tar_bytes(KEYS, other))
    assert errors == ["unsupported-format: z.heic"]


def test_a_header_with_a_negative_size_ends(tmp_path):
    data = bytearray(tar_bytes(KEYS))
    at = headers(bytes(data))[4]
    data[at + 124 : at + 136] = b"\xff" * 10 + b"\xfc\x00"
    check = sum(data[at : at + 148]) + 8 * 32 + sum(data[at + 156 : at + BLOCK])
    data[at + 148 : at + 156] = f"{check:06o}\0 ".encode()
    keys, errors = read(tmp_path, bytes(data))
    assert keys == ["k0", "k3", "k4", "k5"] and any("broken-input" in error for error in errors)


def test_a_header_that_asks_for_gigabytes(tmp_path):
    def large(tar):
        info = tarfile.TarInfo("large")
        info.type, info.size = tarfile.XHDTYPE, 1 << 33
        tar.fileobj.write(info.tobuf())

    _, errors = read(tmp_path, gzip.compress(tar_bytes(KEYS, large)), "x.tar.gz")
    assert errors[-1].startswith("broken-input") or errors[0].startswith("broken-input")


def test_a_sparse_member_is_read_or_named(tmp_path):
    def sparse(tar):
        info = tarfile.TarInfo("s.jpg")
        fields = {"major": "0", "minor": "1", "name": "s.jpg", "size": str(1 << 40), "numblocks": "1", "map": "0,100"}
        info.pax_headers = {f"GNU.sparse.{name}": value for name, value in fields.items()}
        info.size = 100
        tar.addfile(info, io.BytesIO(bytes(100)))

    keys, errors = read(tmp_path, tar_bytes(KEYS, sparse))
    assert keys == KEYS and errors[0].startswith("unreadable: s.jpg: 1,099,511,627,776 bytes")


def test_key_field_and_other_flags(tmp_path):
    (tmp_path / "y.tar").write_bytes(tar_bytes(["a"]))
    (got,) = open_source(str(tmp_path / "y.tar"), fields=Fields(key="uid"))
    assert got.error.startswith("missing-key")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        content = json.dumps({"text": "x", "uid": 17}).encode()
        info = tarfile.TarInfo("a.json")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    (tmp_path / "y.tar").write_bytes(buffer.getvalue())
    (got,) = open_source(str(tmp_path / "y.tar"), fields=Fields(key="uid"))
    assert (got.key, got.metadata) == ("17", {})


@pytest.mark.parametrize("seed", range(60))
def test_every_sample_is_there_or_something_is_named(tmp_path, seed):
    """Random damage of one place: either all samples come out whole, or the damage has a line."""
    rng = np.random.default_rng(seed)
    name = list(PACK)[seed % 4]
    data = bytearray(PACK[name](tar_bytes(KEYS)) if seed % 2 else tar_bytes(KEYS))
    at = int(rng.integers(0, len(data) - 1000))
    length = int(rng.integers(1, 1500))
    data[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes() if seed % 3 else b""
    (tmp_path / name).write_bytes(PACK[name](bytes(data)) if not seed % 2 else bytes(data))
    samples = list(open_source(str(tmp_path / name)))
    whole = [s.key for s in samples if not s.error and s.image == JPEG and s.text == f"text of {s.key}"]
    other = [s for s in samples if s.error or s.image != JPEG or s.text != f"text of {s.key}"]
    assert other or whole == KEYS
