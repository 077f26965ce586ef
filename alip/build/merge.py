"""Parts that several machines built → one data set."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

from alip.data.shards import Manifest, load_manifest
from alip.errors import UserError


def merge(output: str | os.PathLike, *, overwrite: bool = False) -> int:
    """Joins `DIR/NAME-part1ofN` … `DIR/NAME-partNofN` to `DIR/NAME`: one manifest over all their shards, which stay
    where they are, and one rejects file. UserError if a part is missing, unfinished, or built in another way."""
    folder, name = Path(output).parent, Path(output).name
    target = folder / f"{name}.json"
    if target.exists() and not overwrite:
        raise UserError(f"{target} is there already: give --overwrite to join the parts anew")
    parts = _find_parts(folder, name)
    first = parts[0]
    for part in parts[1:]:
        for what in ("context_length", "tokenizer", "vocab_size", "image"):
            if getattr(part, what) != getattr(first, what):
                raise UserError(f"{part.name} and {first.name} differ in {what}: build them with the same flags")
        ours, theirs = (_comparable(one) for one in (first, part))
        changed = [key for key in ours if ours[key] != theirs.get(key)]
        if changed:
            raise UserError(f"{part.name} and {first.name} were built with another {', '.join(changed)}")
    rejects: Counter = Counter()
    for part in parts:
        rejects.update(part.rejects)
    facts = dict(first.facts)
    facts["untouched"] = sum(part.facts["untouched"] for part in parts)
    facts["part"] = [1, 1]
    facts["parts"] = [part.name for part in parts]
    merged = Manifest(
        name=name,
        folder=folder,
        samples=sum(part.samples for part in parts),
        shards=tuple(shard for part in parts for shard in part.shards),
        context_length=first.context_length,
        tokenizer=first.tokenizer,
        vocab_size=first.vocab_size,
        rejects=dict(rejects),
        image=first.image,
        facts=facts,
    )
    with open(folder / f"{name}-rejects.jsonl", "wb") as out:
        for part in parts:
            with open(folder / f"{part.name}-rejects.jsonl", "rb") as file:
                shutil.copyfileobj(file, out)
    merged.save()
    print(f"{folder / name}: {merged.samples:,} samples in {len(merged.shards)} shards of {len(parts)} parts")
    return 0


def _comparable(part: Manifest) -> dict:
    """The options that all parts must share; each part lists its own place."""
    return {key: value for key, value in part.facts.get("options", {}).items() if key != "part"}


def _find_parts(folder: Path, name: str) -> list[Manifest]:
    pattern = re.compile(re.escape(name) + r"-part(\d+)of(\d+)(\.json|\.partial)")
    found: dict[int, dict[int, str]] = {}
    for path in folder.glob(f"{name}-part*") if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match and match.group(3) == ".json":
            found.setdefault(int(match.group(2)), {})[int(match.group(1))] = path.name
    if not found:
        raise UserError(f"no parts of {folder / name}: build them with --part 1/N … --part N/N")
    if len(found) > 1:
        numbers = " and ".join(str(n) for n in sorted(found))
        raise UserError(f"{folder / name} has parts of {numbers}: remove those that are not wanted")
    ((n, names),) = found.items()
    missing = [k for k in range(1, n + 1) if k not in names]
    if missing:
        raise UserError(f"{folder / name} lacks part {', '.join(f'{k}/{n}' for k in missing)}: build it, then merge")
    return [load_manifest(folder / names[k]) for k in range(1, n + 1)]
