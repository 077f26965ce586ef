"""Mutations of rec shards: records, index, manifest, sidecar, whole files; read by --verify and by the loader.

Whatever is read without an error must be the samples that were written: nothing changed, nothing under another key.
Where verify calls a dataset sound, all samples must be there.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from alip.build.joined_texts import TextFiles
from alip.build.prepare import CaptionPolicy, Policy
from alip.build.verify import dataset_faults, verify_shard
from alip.data.loader import create_loader
from alip.data.manifest_schema import manifest_checksum
from alip.data.shards import TOKENIZER, load_manifest, read_texts, row_captions
from alip.distributed import World
from alip.errors import UserError
from tests.fuzz import Target
from tests.helpers.shards import build_shards, make_captioned_tars, make_tars

SAMPLES, PER_SHARD = 11, 4
Mutator = Callable[[random.Random, Path], None]
ODD = (
    *(None, True, False, 0, 1, -1, 4.0, 1e300, float("nan"), 2**31, 2**63, 10**30, "", "x", "../x", "/dev/zero", ".."),
    *("set-00000.rec", "\x00", "\ud800", "0" * 64, "a" * 5000, [], {}, [[]], [1, 1], {"a": 1}, [None]),
)


@lru_cache(maxsize=2)
def sound(several: bool = False) -> tuple[Path, Counter, Counter]:
    """A small dataset, and the samples in it: (tokens, image), and the same with key, text and captions. several: with
    up to three captions per image."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-shards-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options = {"samples_per_shard": PER_SHARD}
    if several:
        tars, captions = make_captioned_tars(folder / "tars", SAMPLES, 3)
        options |= {"texts": TextFiles(captions=(str(captions),)), "policy": Policy(captions=CaptionPolicy(3))}
    else:
        tars = make_tars(folder / "tars", SAMPLES)
    build_shards(tars, folder / "shards" / "set", **options)
    return folder / "shards", Counter(samples(folder / "shards")), Counter(samples(folder / "shards", texts=True))


def samples(data: Path, texts: bool = False) -> list[tuple]:
    """What the loader reads of a dataset, one tuple a sample; with its strings on request."""
    form = {"image_size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    loader = create_loader(
        data,
        3,
        world=World(),
        reader="torch",
        threads=1,
        shuffle=False,
        drop_last=False,
        caption_sampling="first",
        **form,
    )
    tokens = [
        row.tobytes()
        for batch in loader.epoch(0)
        for row in np.concatenate([batch.text_tokens, batch.caption_tokens], 1)
    ]
    if loader.manifest.captions_per_image > 1:
        counts, captions = loader.records.captions(np.arange(loader.manifest.samples))
        parts = np.split(captions, np.cumsum(counts)[:-1])
        tokens = [one + part.tobytes() for one, part in zip(tokens, parts, strict=True)]
    images = [bytes(one) for one in loader.records.read(np.arange(loader.manifest.samples))[1]]
    pairs = list(zip(tokens, images, strict=True))
    if not texts:
        return pairs
    rows = [(row["key"], row["text"], row["caption"], *row_captions(row)) for row in read_texts(loader.manifest)]
    return [(*pair, *row) for pair, row in zip(pairs, rows, strict=True)]


def is_sound(data: Path) -> bool:
    """The judgement of data2rec.py --verify, in this process."""
    manifest = load_manifest(data)
    faults = dataset_faults(manifest)
    for number in range(len(manifest.shards)):
        faults += verify_shard(manifest, number, decode=False).faults
    assert all("\n" not in fault for fault in faults), f"a fault of several lines: {faults}"
    return not faults


def check(data: Path, complete: bool, several: bool = False) -> None:
    """complete: the manifest is the dataset's own, so that the loader must find all samples or refuse."""
    _, known, known_with_texts = sound(several)
    refusal = None
    try:
        read = Counter(samples(data))
        assert not read - known, "the loader read samples that were never written"
        assert not complete or read == known, "the loader read other samples than all"
    except UserError as error:
        refusal = error
    if (
        is_sound(data) and load_manifest(data).tokenizer == TOKENIZER
    ):  # of another one verify knows no more than its name
        assert refusal is None, f"verify calls it sound, the loader refuses: {refusal}"
        assert Counter(samples(data, texts=True)) == known_with_texts, "verify calls a changed dataset sound"
    if refusal:
        raise refusal


def some_bytes(rng: random.Random, path: Path) -> None:
    """Damage that knows nothing of the format."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data) + 1) if data else 0
    length = rng.choice((1, 1, 2, 4, 16, 512, 4096))
    action = rng.randrange(7)
    if action == 0 and data:
        data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
    elif action == 1:
        data[at : at + length] = rng.randbytes(min(length, len(data) - at))
    elif action == 2:
        data[at : at + length] = bytes(min(length, len(data) - at))
    elif action == 3:
        del data[at : at + length]
    elif action == 4:
        data[at:at] = rng.randbytes(length)
    elif action == 5:
        data = data[:at]
    else:
        other = rng.randrange(len(data) + 1)
        data[at : at + length] = data[other : other + length]
    path.write_bytes(data)


def records(rng: random.Random, folder: Path) -> None:
    """Whole records of a rec file: exchanged, repeated, left out, moved into another file, their CRC-32 zeroed."""
    path = rng.choice(sorted(folder.glob("*.rec")))
    with open(path, "rb") as file:
        data = file.read()
    offsets = [int(line.split()[1]) for line in path.with_suffix(".idx").read_text().splitlines()]
    pieces = [bytearray(data[a:b]) for a, b in zip(offsets, [*offsets[1:], len(data)])]
    a, b = rng.randrange(len(pieces)), rng.randrange(len(pieces))
    action = rng.randrange(5 if (folder / "set.json").exists() else 3)  # only a manifest has that there was a CRC-32
    if action == 0:
        pieces[a], pieces[b] = pieces[b], pieces[a]
    elif action == 1:
        pieces[a] = pieces[b]
    elif action == 2:
        del pieces[a]
    elif action == 3:
        pieces[a][24:32] = bytes(8)
        pieces[a][rng.randrange(32, len(pieces[a]))] ^= 1 << rng.randrange(8)
    else:
        pieces[a][rng.randrange(0, 32)] ^= 1 << rng.randrange(8)
    path.write_bytes(b"".join(pieces))
    if rng.random() < 0.5:  # an index that fits again
        starts = np.cumsum([0, *map(len, pieces)])[:-1].tolist()
        path.with_suffix(".idx").write_text("".join(f"{i}\t{start}\n" for i, start in enumerate(starts)))


def index(rng: random.Random, folder: Path) -> None:
    """Lines and numbers of an index."""
    path = rng.choice(sorted(folder.glob("*.idx")))
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    action = rng.randrange(10)
    if action == 0:
        rng.shuffle(lines)
    elif action == 1:
        lines[a][1] = lines[b][1]
    elif action == 2:
        lines[a][1], lines[b][1] = lines[b][1], lines[a][1]
    elif action == 3:
        lines[a][0] = lines[b][0]
    elif action == 4:
        lines.insert(b, lines[a])
    elif action == 5:
        del lines[a]
    elif action == 6:
        lines[a][rng.randrange(2)] = rng.choice(("", "-1", "0x10", "1e3", "9" * 30, "٣", " 7", "0", str(2**63 - 1)))
    elif action == 7:
        lines[a][1] = str(int(lines[a][1]) + rng.choice((-4, 4, 8, 40, 10**6)))
    elif action == 8:
        lines = lines[::-1]
    else:
        some_bytes(rng, path)
        return
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


def values(rng: random.Random, folder: Path) -> None:
    """A value of the manifest: another one, left out, repeated; with a checksum that fits again, or none."""
    path = folder / "set.json"
    content = json.loads(path.read_text())
    holder, key = content, None
    while True:
        choices = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not choices:
            break
        key = rng.choice(choices)
        if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.7:
            holder = holder[key]
        else:
            break
    action = rng.randrange(5)
    if key is None or action == 0:
        content["shards"][rng.randrange(len(content["shards"]))][rng.choice(("rec", "idx", "sidecar"))] = rng.choice(
            ODD
        )
    elif action == 1:
        del holder[key]
    elif action == 2 and isinstance(holder, list):
        holder.insert(0, holder[key])
    elif action == 3 and isinstance(holder[key], int):
        holder[key] += rng.choice((-1, 1, PER_SHARD))
    else:
        holder[key] = rng.choice(ODD)
    if rng.random() < 0.5 and isinstance(content.get("shards"), list):  # totals that fit again
        counts = [one.get("samples") for one in content["shards"] if isinstance(one, dict)]
        if all(type(count) is int for count in counts):
            content["samples"] = sum(counts)
    kind = rng.randrange(3)
    if kind == 0:
        content["checksum"] = manifest_checksum(content)
    elif kind == 1:
        content.pop("checksum", None)
    path.write_text(json.dumps(content))


def shard_list(rng: random.Random, folder: Path) -> None:
    """The manifest's list of shards: one left out, repeated, two with exchanged files; totals and checksum fit."""
    path = folder / "set.json"
    content = json.loads(path.read_text())
    shards = content["shards"]
    a, b = rng.randrange(len(shards)), rng.randrange(len(shards))
    action = rng.randrange(4)
    if action == 0:
        del shards[a]
    elif action == 1:
        shards.append(shards[a])
    elif action == 2:
        kind = rng.choice(("rec", "idx", "sidecar", "samples", "bytes", "sha256", "sidecar_sha256"))
        shards[a][kind], shards[b][kind] = shards[b][kind], shards[a][kind]
    else:
        shards[a]["sidecar"] = shards[a]["sidecar_sha256"] = None
    content["samples"] = sum(shard["samples"] for shard in shards)
    content["checksum"] = manifest_checksum(content)
    path.write_text(json.dumps(content))


def sidecar(rng: random.Random, folder: Path) -> None:
    """The strings beside the records: rows exchanged, columns missing, other types, bytes damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = rng.choice(sorted(folder.glob("*.parquet")))
    action = rng.randrange(5)
    if action == 0:
        some_bytes(rng, path)
        return
    table = pq.read_table(path)
    if action == 1:
        table = table.take(pa.array(rng.sample(range(len(table)), len(table))))
    elif action == 2:
        table = table.drop_columns([rng.choice(table.column_names)])
    elif action == 3:
        table = table.slice(1)
    else:
        number = rng.randrange(table.num_columns)
        table = table.set_column(number, table.column_names[number], pa.array(range(len(table))))
    pq.write_table(table, path)


def whole_files(rng: random.Random, folder: Path) -> None:
    """Files exchanged, missing, empty, or no files at all."""
    paths = sorted(path for path in folder.iterdir() if path.name != "set.json")
    path = rng.choice(paths)
    same_kind = [other for other in paths if other.suffix == path.suffix and other != path]
    action = rng.randrange(7)
    if action == 0 and same_kind:
        other = rng.choice(same_kind)
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif action == 1 and same_kind:
        shutil.copy(rng.choice(same_kind), path)
    elif action == 2:
        path.write_bytes(b"")
    else:
        path.unlink()
        if action == 3:
            path.mkdir()
        elif action == 4:
            os.mkfifo(path)
        elif action == 5:
            path.symlink_to("/dev/zero")


def target(
    name: str, *mutators: Mutator, complete: bool = True, manifest: bool = True, several: bool = False
) -> Target:
    """Up to three mutations of one kind. manifest=False: the rec files alone, as released ones; several: captions."""

    def make(rng: random.Random, folder: Path) -> Callable[[], None]:
        data = folder / "data"
        shutil.copytree(sound(several)[0], data)
        if not manifest:
            for path in [data / "set.json", *data.glob("*.parquet")]:
                path.unlink()
        for _ in range(rng.choice((1, 1, 2, 3))):
            if any(path.is_symlink() or not path.is_file() for path in data.iterdir()):
                break  # to read or copy a pipe or /dev/zero has no end
            try:
                rng.choice(mutators)(rng, data)
            except (ValueError, LookupError, OSError, TypeError, AttributeError):
                break  # the mutation before has left nothing to mutate
        return lambda: check_released(data) if not manifest else check(data, complete, several)

    return Target(f"shards: {name}", make)


def check_released(data: Path) -> None:
    """Without a manifest nobody knows what is missing; what is read must have been written all the same."""
    assert not Counter(samples(data)) - Counter(dict.fromkeys(sound()[1], SAMPLES))


def of(pattern: str) -> Mutator:
    """Damage of the bytes of one of the files."""
    return lambda rng, folder: some_bytes(rng, rng.choice(sorted(folder.glob(pattern))))


TARGETS = [
    target("rec", of("*.rec"), of("*.rec"), records),
    target("index", index),
    target("manifest", values, of("set.json"), complete=False),
    target("shard list", shard_list, complete=False),
    target("sidecar", sidecar),
    target("files", whole_files),
    target("everything", of("*.rec"), records, index, sidecar, whole_files),
    target("several captions", of("*.rec"), records, sidecar, several=True),
    target("manifest of several captions", values, complete=False, several=True),
    target("without a manifest", of("*.rec"), records, index, manifest=False),
]
