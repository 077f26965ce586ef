"""Changes to bytes and to JSON values, sampled from a generator."""

from __future__ import annotations

import json
import random
from typing import Any

# fmt: off
ODD_VALUES: list[Any] = [
    None, True, 0, -1, 1.5, float("nan"), 10**30, "", " ", "\0", "\ud800", "x" * 3000, [], {}, [None], {"": []},
    "../../x", "a\rb", "\ufeff", "\u2028",
]
ODD_BYTES = [
    b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\0", b'"', b'""', b"\\", b"\xed\xa0\x80", b"\xc3", b"\t", b",",
    b"[" * 5000, b"{" * 5000, b"9" * 5000, b"\x1a", b"\\ud800", b"NaN", b"'",
]
# fmt: on


def damage(rng: random.Random, data: bytes, first: int = 0) -> bytes:
    """One to three changes behind byte `first`: bits, runs, zeros, cuts, insertions, repetitions, moved blocks."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if len(out) <= first + 1:
            break
        at = rng.randrange(first, len(out))
        size = min(len(out) - at, rng.choice((1, 2, 4, 16, 100, 512, 4096)))
        action = rng.randrange(9)
        if action == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            out[at : at + size] = rng.randbytes(size)
        elif action == 2:
            out[at : at + size] = bytes([rng.choice((0, 0, 255))]) * size
        elif action == 3:
            del out[at:]
        elif action == 4:
            del out[at : at + size]
        elif action == 5:
            out[at:at] = rng.randbytes(size)
        elif action == 6:
            out[at:at] = out[at : at + size]
        elif action == 7:
            to = rng.randrange(first, len(out))
            out[to : to + size] = out[at : at + size]
        else:
            out[at:at] = rng.choice(ODD_BYTES)
    return bytes(out)


def mutated_json(rng: random.Random, value: Any) -> Any:
    """The value with one to three parts replaced, removed or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        holders = [value] if isinstance(value, dict | list) and value else []
        for holder in holders:
            children = holder.values() if isinstance(holder, dict) else holder
            holders += [child for child in children if isinstance(child, dict | list) and child]
        if not holders:
            return rng.choice(ODD_VALUES)
        holder = rng.choice(holders)
        key = rng.choice([*holder] if isinstance(holder, dict) else range(len(holder)))
        action = rng.randrange(3)
        if action == 0:
            del holder[key]
        elif action == 1 or isinstance(holder, list):
            holder[key] = rng.choice(ODD_VALUES)
        else:
            holder[rng.choice(("id", "image_id", "caption", "x", ""))] = holder.pop(key)
    return value


def json_bytes(rng: random.Random, content: Any) -> bytes:
    """Mutated in its structure or in its bytes."""
    if rng.random() < 0.6:
        text = json.dumps(mutated_json(rng, content), ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, 1)))
        return text.encode("utf-8", "surrogatepass")
    data = json.dumps(content).encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))
    return damage(rng, data)
