"""Binary containers by their rarer rules: parts of records, headers of safetensors, NumPy's arrays.

Where the rules are kept the content is read, where not it is refused or named: nothing is lost in silence.
"""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from alip.checkpoint import load_model
from alip.data.recordio import MAGIC
from alip.eval.wds import open_wds_classification
from tests.fuzz import Target
from tests.fuzz.models import VIT, _model, _quietly
from tests.fuzz.mutations import damage
from tests.fuzz.shards import of, records, target
from tests.helpers.wds import write_wds


def _parts(rng: random.Random, folder: Path) -> None:
    """Words of a record's parts: the continue flag, the length, the magic; parts without a first or last one."""
    path = rng.choice(sorted(folder.glob("*.rec")))
    data = bytearray(path.read_bytes())
    # Another mutation may have cut the file, or changed the index.
    starts = map(int, re.findall(r"^\d+\t(\d{1,9})$", path.with_suffix(".idx").read_text("latin-1"), re.MULTILINE))
    starts = [start for start in starts if start + 12 <= len(data)]
    if not starts:
        return
    at = rng.choice(starts)
    length = struct.unpack_from("<I", data, at + 4)[0] & (2**29 - 1)
    action = rng.randrange(6)
    if action == 0:
        struct.pack_into("<I", data, at + 4, rng.choice((1, 2, 3, 4, 7)) << 29 | length)
    elif action == 1:
        struct.pack_into("<I", data, at + 4, rng.choice((0, 1, 23, 24, length - 1, length + 4, 2**29 - 1)))
    elif action == 2:
        struct.pack_into("<I", data, at, rng.choice((0, MAGIC ^ 1, MAGIC + 1, 0x0A23D7CE)))
    elif action == 3:  # the record in two parts, of any flags
        first, second = rng.choice(((1, 3), (1, 3), (1, 2), (3, 1), (0, 3), (1, 1), (2, 3)))
        cut = 4 * rng.randrange(1 + length // 4)
        body = bytes(data[at + 8 : at + 8 + length])
        split = struct.pack("<II", MAGIC, first << 29 | cut) + body[:cut]
        split += struct.pack("<II", MAGIC, second << 29 | length - cut) + body[cut:] + bytes(-(length - cut) % 4)
        data[at : at + 8 + length + -length % 4] = split
    elif action == 4:  # continued for ever
        data[at:at] = struct.pack("<II", MAGIC, 1 << 29) + struct.pack("<II", MAGIC, 2 << 29) * rng.choice((3, 200_000))
    else:
        struct.pack_into("<I", data, at + 8, rng.choice((0, 1, 153, 155, 2**20, 2**31, 2**32 - 1)))  # labels
    path.write_bytes(data)


def _safetensors(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Headers of safetensors beside sound tensors: keys twice, offsets that overlap or leave holes, odd lengths."""
    from safetensors.torch import save

    data = save({name: value.contiguous() for name, value in _model().state_dict().items()})
    size = struct.unpack("<Q", data[:8])[0]
    head, body = data[8 : 8 + size], data[8 + size :]
    content = json.loads(head)
    names = [name for name in content if name != "__metadata__"]
    a, b = rng.sample(names, 2)
    action = rng.randrange(8)
    if action == 0:  # a key twice, the second time as another tensor
        head = head.rstrip()[:-1] + f', "{a}": {json.dumps(content[b])}}}'.encode()
    else:
        offsets = content[a]["data_offsets"]
        if action == 1:
            content[a]["data_offsets"] = content[b]["data_offsets"]
        elif action == 2:
            content[a]["data_offsets"] = [offset + rng.choice((-4, 4, 2**40, -(2**40))) for offset in offsets]
        elif action == 3:
            content[a]["data_offsets"] = offsets[::-1]
        elif action == 4:
            content[a]["dtype"] = rng.choice(
                ("F16", "F64", "I32", "BOOL", "F8_E4M3", "F8_E5M2", "U64", "C64", "f32", "")
            )
        elif action == 5:
            content[a]["shape"] = rng.choice(([2**63], [0], [], [-1, -1], [1.5], [2**32, 2**32], [1] * 100))
        elif action == 6:
            content["__metadata__"] = rng.choice(({"format": "tf"}, {"a": 3}, [], "x", {"a": "b" * 10**6}, None))
        else:
            del content[a]
        head = json.dumps(content).encode()
    length = rng.choice((len(head),) * 6 + (0, 7, len(head) + 1, 100_000_001, 2**63, 2**64 - 1))
    path = folder / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + head + body + bytes(rng.choice((0, 0, 4))))
    return _quietly(lambda: load_model(path, VIT))


def _npy(rng: random.Random) -> bytes:
    """An array of NumPy's format: a header of any shape and type, or an archive that unpacks to 300 MB in its place."""
    action = rng.randrange(4)
    if action == 0:
        out = io.BytesIO()
        if rng.random() < 0.5:
            np.savez_compressed(out, a=np.zeros(rng.choice((3, 300 << 20)), np.uint8))
        else:
            np.savez(out, np.array([1, 2]))
        return out.getvalue()
    shape = rng.choice(
        ("(3,)", "()", "(0,)", "(-1,)", f"({2**40},)", f"({2**62}, {2**62})", "(1.5,)", "(3" + ",1" * 70 + ")", "3")
    )
    kind = rng.choice(
        (
            "'<f8'",
            "'|O'",
            "'|S1000000000'",
            "'<U7'",
            "[('a', '<f4')]",
            "'<M8[s]'",
            "'|V9'",
            "'<c16'",
            "x",
            "'" + "9" * 5000 + "'",
        )
    )
    text = f"{{'descr': {kind}, 'fortran_order': {rng.choice(('True', 'False', '3'))}, 'shape': {shape}, }}".encode()
    text = rng.choice((text, text, text, b"[" * 3000, b"{" + b"1:" * 3000, b"\xff"))
    length = rng.choice((len(text), len(text), len(text), 0, 65_535))
    version = rng.choice((b"\x01\0", b"\x02\0", b"\x03\0", b"\x04\0"))
    packed = (
        struct.pack("<H", min(length, 65_535))
        if version == b"\x01\0"
        else struct.pack("<I", rng.choice((length, length, 2**32 - 1)))
    )
    return b"\x93NUMPY" + version + packed + text + bytes(rng.choice((0, 24, 4096)))


def _arrays(rng: random.Random, folder: Path) -> Callable[[], object]:
    write_wds(folder / "wds", [number % 3 for number in range(4)], list("abc"), arrays=[[1.0, 2.0]] * 4)
    path = folder / "wds/test/0.tar"
    odd = rng.randrange(4)
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    content = _npy(rng)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            if name == f"s{odd:07d}.npy":
                data = content if rng.random() < 0.9 else damage(rng, data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    count = rng.choice((None, None, None, "9" * 5000, "²", "1" * 30, "1 ", "01", "-1"))
    if count:
        (folder / "wds/test/nshards.txt").write_text(count)
    return lambda: open_wds_classification(folder / "wds", groups=True).groups.sum()


TARGETS = [
    Target("container: safetensors headers", _safetensors),
    Target("container: NumPy arrays", _arrays),
    target("parts of records", _parts, _parts, records),
    target("parts of released records", _parts, _parts, of("*.rec"), manifest=False),
]
