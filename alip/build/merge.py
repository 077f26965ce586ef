"""Input shards that several machines built → one dataset."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

from alip.build.shared_keys import count_shared_keys, shared_keys_text
from alip.data.shards import Manifest, load_manifest
from alip.errors import UserError
from alip.files import atomic_write
from alip.remote.reading import exists, glob, open_any
from alip.remote.urls import UrlPath, is_url, local_path, name_of
from alip.remote.writing import check_writable, upload
from alip.text_table import counted


def merge(output: str | os.PathLike, *, overwrite: bool = False) -> int:
    """Joins `DIR/NAME-shard1ofN` … `DIR/NAME-shardNofN` to `DIR/NAME`: one manifest over all their rec shards, which
    keep their names, and one rejects file. UserError if one is missing, unfinished, or built with other flags."""
    output = local_path(str(output))
    path = UrlPath(output) if is_url(output) else Path(output)
    folder, name = path.parent, path.name
    target = folder / f"{name}.json"
    if is_url(output):
        check_writable(output)
    if (exists(target.url) if isinstance(target, UrlPath) else target.exists()) and not overwrite:
        raise UserError(f"{target} exists already: give --overwrite to merge again")
    inputs = _find_inputs(folder, name)
    first = inputs[0]
    for other in inputs[1:]:
        _check_alike(first, other)
    rejects: Counter = Counter()
    for one in inputs:
        rejects.update(one.rejects)
    one_text = sum(one.metadata.get("one_text", 0) for one in inputs)
    shards = tuple(shard for one in inputs for shard in one.shards)
    shared = count_shared_keys(first.metadata.get("options", {}), folder, shards)
    merged = Manifest(
        name=name,
        folder=folder,
        samples=sum(one.samples for one in inputs),
        shards=shards,
        context_length=first.context_length,
        tokenizer=first.tokenizer,
        vocab_size=first.vocab_size,
        rejects=dict(rejects),
        image=first.image,
        captions_per_image=first.captions_per_image,
        metadata={
            **{name: value for name, value in first.metadata.items() if name not in ("one_text", "shared_keys")},
            "untouched": sum(one.metadata["untouched"] for one in inputs),
            **{name: count for name, count in (("one_text", one_text), ("shared_keys", shared)) if count},
            "input_shard": [1, 1],
            "input_shards": [one.name for one in inputs],
        },
    )
    _publish(merged, [one.name for one in inputs])
    shards = counted(len(merged.shards), "shard")
    print(f"{folder / name}: {merged.samples:,} samples in {shards}, merged from {len(inputs)}")
    print(*shared_keys_text(merged.metadata), sep="", end="\n" if shared else "")
    return 0


def _publish(merged: Manifest, names: list[str]) -> None:
    """Writes the rejects of the input shards as one file, then the manifest."""
    folder, rejects = merged.folder, f"{merged.name}-rejects.jsonl"
    with tempfile.TemporaryDirectory() if isinstance(folder, UrlPath) else nullcontext(folder) as local:
        with atomic_write(Path(local) / rejects) as out:
            for name in names:
                source = folder / f"{name}-rejects.jsonl"
                with open_any(source.url if isinstance(source, UrlPath) else source) as file:
                    shutil.copyfileobj(file, out)
        if isinstance(folder, UrlPath):
            upload(Path(local) / rejects, (folder / rejects).url)
            upload(merged.save(Path(local)), (folder / f"{merged.name}.json").url)
        else:
            merged.save()


def _check_alike(first: Manifest, other: Manifest) -> None:
    for what in ("context_length", "tokenizer", "vocab_size", "image", "captions_per_image"):
        if getattr(other, what) != getattr(first, what):
            raise UserError(f"{other.name} and {first.name} differ in {what}: build them with the same flags")
    ours, theirs = (_comparable(one) for one in (first, other))
    changed = [key for key in ours if ours[key] != theirs.get(key)]
    if changed:
        raise UserError(f"{other.name} and {first.name} were built with another {', '.join(changed)}")


def _comparable(manifest: Manifest) -> dict:
    """The options that all input shards must have in common."""
    return {key: value for key, value in manifest.metadata.get("options", {}).items() if key != "input_shard"}


def _find_inputs(folder: Path | UrlPath, name: str) -> list[Manifest]:
    pattern = re.compile(re.escape(name) + r"-(?:shard|part)(\d+)of(\d+)\.json")  # `part` is the older name
    found: dict[int, dict[int, str]] = {}
    for file in _json_files(folder, name):
        match = pattern.fullmatch(file)
        if match:
            names = found.setdefault(int(match.group(2)), {})
            if names.setdefault(int(match.group(1)), file) != file:
                raise UserError(f"{folder / file} and {names[int(match.group(1))]} are the same shard: remove one")
    if not found:
        raise UserError(f"no input shards of {folder / name}: build them with --shard 1/N … --shard N/N")
    if len(found) > 1:
        numbers = " and ".join(str(n) for n in sorted(found))
        raise UserError(f"{folder / name} has input shards of {numbers}: remove those that are not wanted")
    ((n, names),) = found.items()
    missing = [k for k in range(1, n + 1) if k not in names]
    if missing:
        raise UserError(f"{folder / name} lacks shard {', '.join(f'{k}/{n}' for k in missing)}: build it, then merge")
    paths = [folder / names[k] for k in range(1, n + 1)]
    return [load_manifest(path.url if isinstance(path, UrlPath) else path, at_url=True) for path in paths]


def _json_files(folder: Path | UrlPath, name: str) -> list[str]:
    """Names of the manifests of input shards, among others."""
    if isinstance(folder, UrlPath):
        return [name_of(url) for url in glob((folder / f"{name}-*.json").url)]
    return [path.name for path in folder.glob("*.json")] if folder.is_dir() else []
