"""Many records at a time against one at a time: the same samples, the same refusals."""

import random

import numpy as np
import pytest

from alip.data import recordio
from alip.data.batch_parse import jpeg_sizes
from alip.data.jpeg import jpeg_size
from alip.data.sample_reader import Records
from alip.data.shards import load_manifest
from alip.errors import UserError
from alip.tokens import pack_label, tokenize
from tests.helpers.shards import build_shards, encoded, make_image, make_tars

MAGIC = recordio.MAGIC_BYTES


def images() -> list[bytes]:
    """The usual ones, and those that need the slow path: split records, no JPEG, a header far behind, all lengths."""
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFD)
    some = [encoded(make_image(i, 20 + i, 30), quality=90) for i in range(8)]
    some += [
        encoded(make_image(3), "PNG"),
        some[0][:2] + comment + some[0][2:],
        some[1][:2] + b"\xff\xff" + some[1][2:],
    ]
    some += [some[2] + b"\0" * k for k in range(4)]
    aligned = some[4] + bytes(-len(some[4]) % 4)
    return [
        *some,
        aligned + MAGIC + b"end",
        MAGIC.join([aligned, bytes(8), b"x"]),
        encoded(make_image(5), progressive=True),
    ]


@pytest.fixture
def mixed(tmp_path):
    tokens = tokenize(["one", "two"]).numpy()
    for shard in range(2):
        with recordio.Writer(tmp_path / f"{shard}.rec", tmp_path / f"{shard}.idx") as writer:
            for number, image in enumerate(images()):
                payload = recordio.pack(pack_label(*tokens), image, number)
                writer.write(recordio.stamp(payload, number) if shard else payload)
    return tmp_path


def one_by_one(records: Records, index: np.ndarray):
    """The slow reference."""
    found = [records._read_one(int(i)) for i in index]
    labels = np.stack([label for label, _, _ in found])
    return records._tokens(labels, index), [image for _, image, _ in found], np.array([size for _, _, size in found])


def test_all_records_in_any_order(mixed):
    records = Records(load_manifest(mixed), 49408)
    count = records.manifest.samples
    for seed in range(5):
        index = np.random.default_rng(seed).permutation(count)[: count - seed]
        tokens, encoded_images, sizes = records.read(index)
        expected = one_by_one(records, index)
        assert tokens.dtype == np.int64 and (tokens == expected[0]).all() and (sizes == expected[2]).all()
        assert [bytes(a) for a in encoded_images] == [bytes(b) for b in expected[1]]
        assert [bytes(a) for a in encoded_images] == [images()[i % (count // 2)] for i in index]


def test_an_index_in_another_order(mixed):
    path = mixed / "0.idx"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[::-1]))
    records = Records(load_manifest(mixed), 49408)
    index = np.arange(records.manifest.samples)
    assert [bytes(a) for a in records.read(index)[1]] == [*images()[::-1], *images()]


def outcome(read, *arguments):
    try:
        tokens, encoded_images, sizes = read(*arguments)
        return tokens.tobytes(), [bytes(one) for one in encoded_images], sizes.tolist()
    except UserError as error:
        return str(error)


def test_damage_is_refused_by_both_in_the_same_words(tmp_path):
    make_tars(tmp_path / "tars", 12)
    build_shards(tmp_path / "tars", tmp_path / "set", samples_per_shard=6)
    rec = tmp_path / "set-00000.rec"
    whole = rec.read_bytes()
    rng = random.Random(0)
    refused = 0
    for data in (tmp_path / "set", rec):
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(rng.randint(1, 2)):
                at = rng.randrange(len(whole)) if rng.random() < 0.5 else rng.choice((0, 1, 8, 20, 30, 33)) + 4
                damaged[at] ^= 1 << rng.randrange(8)
            rec.write_bytes(damaged)
            records = Records(load_manifest(data), 49408)
            index = np.arange(6)
            fast = outcome(records.read, index)
            assert fast == outcome(one_by_one, records, index)
            refused += isinstance(fast, str)
    assert refused > 200


def test_sizes_of_jpegs_with_mutated_headers():
    rng = np.random.default_rng(1)
    base = [encoded(make_image(i), quality=80) for i in range(4)]
    some = []
    for _ in range(1500):
        data = bytearray(base[rng.integers(4)][: rng.choice([3, 4, 11, 12, 40, 200, 700])])
        for _ in range(rng.integers(0, 4)):
            if data:
                data[rng.integers(len(data))] = rng.choice([0, 255, 0xC0, 0xC4, 0xD8, 0xDA, 1, rng.integers(256)])
        some.append(bytes(data))
    ends = np.cumsum([len(one) for one in some])
    found = jpeg_sizes(np.frombuffer(b"".join(some), np.uint8), ends - [len(one) for one in some], ends)
    expected = [jpeg_size(one) for one in some]
    assert sum(size is not None for size in expected) > 200
    for one, size, (width, height) in zip(some, expected, found.tolist()):
        assert (width, height) == (size or (0, 0)) or (width, height) == (0, 0), one
    simple = [size for size, one in zip(expected, found.any(axis=1)) if one]
    assert len(simple) >= 0.95 * sum(size not in (None, (0, 0)) for size in expected)
