"""All mutations: changes to bytes, JSON values, JSON texts and files, sampled from a generator."""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import socket
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

# fmt: off
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 16, 49407, 10**5, 10**9, 10**12, 10**30, 10**400, 1.5, -0.5, 0.0, 1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", " \n", "\0", "\ud800", "x", "12", "none", "x" * 5000, "a\rb",
    "a\nb", "\ufeff", "\u2028", "../../x", "../" * 30 + "etc/passwd", "/dev/zero", "hf-hub:a/b", "a{}b{}", "{0}", "$_{",
    [], [1], [1, 2], [1, 2, 3], [None], [None] * 3, [[]], ["", 3], ["a"] * 1000, {}, {"": []}, {"": {}}, {"image": 3},
    {"eps": "x"}, {"a": {"b": [1]}},
]
ODD_KEYS = ("id", "image_id", "caption", "images", "x", "", "extra", "layers", "width", "cast_dtype", "timm_model_name",
            "hf_model_name", "__class__", "a" * 3000)
ODD_BYTES = [
    b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\0", b'"', b'""', b"\\", b"\xed\xa0\x80", b"\xc3", b"\t", b",",
    b"[" * 5000, b"{" * 5000, b"9" * 5000, b"\x1a", b"\\ud800", b"NaN", b"'",
]
ODD_FILES = [
    b"", b"\0" * 64, b"{", b"[]", b"{}", b"null", b"3", b'"x"', b"NaN", b"[" * 100_000, b'{"a":' * 50_000, b"{}\n{}\n",
    b"\xef\xbb\xbf{}", b"\xef\xbb\xbf", b"\xff\xfe{\0}\0", b"\r\n", b"PK\x03\x04", b"\x80\x02}q\0.", b"#!/bin/sh\n",
]
ODD_LITERALS = [
    "NaN", "Infinity", "-Infinity", "1e999", "-0", "9" * 5000, "1E400", "0.1e-5000", "'x'", "undefined", "01", "+1",
    "[" * 3000 + "]" * 3000, '"\\ud800"', '"\\u0000"', '"\t"', "tru", "// x\n1", "0x10",
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


def odd_value(rng: random.Random) -> Any:
    """A value of any type and size."""
    return copy.deepcopy(rng.choice(ODD_VALUES))


def _holders(value: Any) -> list[Any]:
    """All dicts and lists in the value that are not empty."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    here = [value] if isinstance(value, dict | list) and value else []
    return here + [holder for item in inner for holder in _holders(item)]


def other_type(rng: random.Random, value: Any) -> Any:
    """Nearly the same value as another type: 3 as "3", [3], 3.0 or {"3": 3}; a list as a dict of its numbers."""
    if isinstance(value, dict):
        return rng.choice(([value], list(value), [*value.items()], json.dumps(value), str(value)))
    if isinstance(value, list):
        return rng.choice(({str(i): one for i, one in enumerate(value)}, [value], value[0] if value else None))
    if isinstance(value, str):
        in_hex = value.encode(errors="surrogatepass").hex()
        return rng.choice(([value], list(value)[:50], {"": value}, {value: value}, in_hex, len(value)))
    if isinstance(value, int | float):
        big = value * 10**6 if value == value and abs(value) < 1e300 else 0
        return rng.choice((str(value), [value], {"": value}, f"{value} ", bool(value), -value, value + 1, big))
    return rng.choice(("null", "", [None], {}, 0))


def mutated_json(rng: random.Random, value: Any) -> Any:
    """A copy with one to three parts removed, renamed, added, repeated, or with other values or types."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holders = _holders(value)
        if not holders:
            return odd_value(rng)
        holder = rng.choice(holders)
        key = rng.choice([*holder] if isinstance(holder, dict) else range(len(holder)))
        action = rng.randrange(10)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[rng.choice((*ODD_KEYS, f"{key}s", f"{key} ", str(key).upper()))] = holder.pop(key)
        elif action == 2 and isinstance(holder, dict):
            holder[rng.choice(ODD_KEYS)] = odd_value(rng)
        elif action == 1 or action == 2:
            holder.append(copy.deepcopy(holder[key]))
        elif action <= 5:
            holder[key] = other_type(rng, holder[key])
        else:
            holder[key] = odd_value(rng)
    return value if rng.random() > 0.02 else odd_value(rng)


def json_text(rng: random.Random, content: Any, lines: bool = False) -> str:
    """JSON (or JSON lines) text, now and then with what no Python value holds: repeated keys, literals, line ends."""
    options = {"ensure_ascii": rng.random() < 0.7, "indent": None if lines else rng.choice((None, 1))}
    rows = content if lines and isinstance(content, list) else [content]
    text = "\n".join(json.dumps(row, **options) for row in rows)
    action = rng.randrange(30)
    if action == 0:
        text = text.replace("{", '{"x": 1, "x": 2, ', 1)  # a key twice
    elif action == 1 and (keys := [part for part in text.split('"') if part.isidentifier()]):
        key = rng.choice(keys)
        text = text.replace(f'"{key}":', f'"{key}": {rng.choice(ODD_LITERALS)}, "{key}":', 1)
    elif action == 2 and ": " in text:
        at = rng.choice([i for i in range(len(text)) if text.startswith(": ", i)])
        text = f"{text[: at + 2]}{rng.choice(ODD_LITERALS)}{text[at + 2 :]}"
    elif action == 3:
        text = text.replace("\n", rng.choice(("\r\n", "\r", "\u2028", "\n\n", "\0\n")))
    elif action == 4:
        text = text.replace("}", ",}").replace("]", ",]")
    elif action == 5:
        text = text + rng.choice((text, "\0", ",", "}", "]", "\n[", " " * 100_000))
    return text


def json_bytes(rng: random.Random, content: Any, lines: bool = False) -> bytes:
    """The content as JSON (or JSON lines), mutated in its structure, its text, its encoding, its bytes, or replaced."""
    if rng.random() < 0.03:
        return rng.choice(ODD_FILES)
    changed = mutated_json(rng, content) if rng.random() < 0.7 else content
    encoding = rng.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"))
    data = json_text(rng, changed, lines).encode(encoding, "surrogatepass")
    return damage(rng, data) if rng.random() < (0.1 if changed is not content else 0.6) else data


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    """300 MB of zeros, compressed."""
    return gzip.compress(bytes(300 << 20), 1)


KINDS_OF_FILES = ("folder", "fifo", "socket", "loop", "dangling", "device", "memory", "sparse", "gz", "")


def replace_file(rng: random.Random, path: Path, kinds: Sequence[str] = KINDS_OF_FILES) -> str:
    """Puts something else in a file's place; returns what."""
    action = rng.choice(kinds)
    path.unlink()
    if action == "folder":
        path.mkdir()
    elif action == "fifo":
        os.mkfifo(path)
    elif action == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            here = os.open(path.parent, os.O_RDONLY)  # a socket's path is short: by way of its folder
            one.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)
    elif action == "loop":
        path.symlink_to(path.name)
    elif action == "dangling":
        path.symlink_to("nowhere")
    elif action == "device":
        path.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/dev/tty", "/dev/null")))
    elif action == "memory":
        path.symlink_to("/proc/self/mem")  # opens, and cannot be read
    elif action == "sparse":
        with open(path, "wb") as file:
            file.write(rng.choice((b"", b"{", b"PK\x03\x04", b"[", b'"', b"\n")))
            file.truncate(5 << 30)  # more than the memory limit; a table is read to its end, at 2.5 s per GB
    elif action == "gz":
        path.write_bytes(_bomb())
    else:
        path.touch()
    return action or "empty"
