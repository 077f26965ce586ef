"""Input shards that several machines built → one dataset."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

from alip.data.shards import Manifest, load_manifest
from alip.errors import UserError
from alip.files import atomic_write


def merge(output: str | os.PathLike, *, overwrite: bool = False) -> int:
    """Joins `DIR/NAME-shard1ofN` … `DIR/NAME-shardNofN` to `DIR/NAME`: one manifest over all their rec shards, which
    keep their names, and one rejects file. UserError if one is missing, unfinished, or built with other flags."""
    folder, name = Path(output).parent, Path(output).name
    target = folder / f"{name}.json"
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already: give --overwrite to merge again")
    inputs = _find_inputs(folder, name)
    first = inputs[0]
    for other in inputs[1:]:
        _check_alike(first, other)
    rejects: Counter = Counter()
    for one in inputs:
        rejects.update(one.rejects)
    merged = Manifest(
        name=name,
        folder=folder,
        samples=sum(one.samples for one in inputs),
        shards=tuple(shard for one in inputs for shard in one.shards),
        context_length=first.context_length,
        tokenizer=first.tokenizer,
        vocab_size=first.vocab_size,
        rejects=dict(rejects),
        image=first.image,
        captions_per_image=first.captions_per_image,
        metadata={
            **first.metadata,
            "untouched": sum(one.metadata["untouched"] for one in inputs),
            "input_shard": [1, 1],
            "input_shards": [one.name for one in inputs],
        },
    )
    with atomic_write(folder / f"{name}-rejects.jsonl") as out:
        for one in inputs:
            with open(folder / f"{one.name}-rejects.jsonl", "rb") as file:
                shutil.copyfileobj(file, out)
    merged.save()
    print(f"{folder / name}: {merged.samples:,} samples in {len(merged.shards)} shards, merged from {len(inputs)}")
    return 0


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


def _find_inputs(folder: Path, name: str) -> list[Manifest]:
    pattern = re.compile(re.escape(name) + r"-(?:shard|part)(\d+)of(\d+)\.json")  # `part` is the older name
    found: dict[int, dict[int, str]] = {}
    for path in folder.glob("*.json") if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match:
            names = found.setdefault(int(match.group(2)), {})
            if names.setdefault(int(match.group(1)), path.name) != path.name:
                raise UserError(f"{folder / path.name} and {names[int(match.group(1))]} are the same shard: remove one")
    if not found:
        raise UserError(f"no input shards of {folder / name}: build them with --shard 1/N … --shard N/N")
    if len(found) > 1:
        numbers = " and ".join(str(n) for n in sorted(found))
        raise UserError(f"{folder / name} has input shards of {numbers}: remove those that are not wanted")
    ((n, names),) = found.items()
    missing = [k for k in range(1, n + 1) if k not in names]
    if missing:
        raise UserError(f"{folder / name} lacks shard {', '.join(f'{k}/{n}' for k in missing)}: build it, then merge")
    return [load_manifest(folder / names[k]) for k in range(1, n + 1)]
