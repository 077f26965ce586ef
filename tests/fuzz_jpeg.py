"""Mutates the headers of JPEGs, and asks DALI for each one that `to_jpeg` accepts: none may be refused in training.

    python tests/fuzz_jpeg.py --accepted 10000 --seed 0

Prints how many mutations were rejected, stored untouched or re-encoded, and each that DALI refuses; exit status 1 if
there is one.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alip.build.images import ImageError, ImagePolicy, to_jpeg  # noqa: E402
from alip.data.decoders import check_decodes  # noqa: E402
from tests.helpers.shards import make_image  # noqa: E402

BATCH = 64


def originals() -> list[bytes]:
    """JPEGs of the usual forms: baseline and progressive, samplings, EXIF, ICC, comments, restart markers."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 1
    forms: list[dict] = [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"optimize": True},
        {"exif": exif},
        {"comment": b"a comment"},
        {"icc_profile": bytes(range(256)) * 3},
        {"restart_marker_blocks": 2},
        {"quality": 30, "dpi": (72, 72)},
    ]
    out = []
    for number, form in enumerate(forms):
        buffer = io.BytesIO()
        make_image(number, 64 + 3 * number, 48).save(buffer, "JPEG", **{"quality": 85, **form})
        out.append(buffer.getvalue())
    return out


def segments(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of every segment before the entropy-coded data."""
    at, found = 2, []
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((at, end))
        at = end
    found.append((at, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")))
    return found


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    end = segments(bytes(data))[-1][1]
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(2, end))] = int(rng.integers(0, 256))


def _stray(data: bytearray, rng: np.random.Generator) -> None:
    start, _ = _one(data, rng)
    stray = rng.integers(0, 255, int(rng.integers(1, 40)), dtype=np.uint8).tobytes()
    data[start:start] = stray if rng.random() < 0.7 else b"\xff" * len(stray)


def _remove(data: bytearray, rng: np.random.Generator) -> None:
    start, end = _one(data, rng)
    del data[start:end]


def _repeat(data: bytearray, rng: np.random.Generator) -> None:
    start, end = _one(data, rng)
    at, _ = _one(data, rng)
    data[at:at] = data[start:end]


def _length(data: bytearray, rng: np.random.Generator) -> None:
    start, end = _one(data, rng)
    data[start + 2 : start + 4] = max(0, end - start - 2 + int(rng.integers(-9, 10))).to_bytes(2, "big")


def _insert(data: bytearray, rng: np.random.Generator) -> None:
    start, _ = _one(data, rng)
    body = rng.integers(0, 256, int(rng.integers(0, 30)), dtype=np.uint8).tobytes()
    data[start:start] = bytes([0xFF, int(rng.integers(0xC0, 0xFF))]) + (len(body) + 2).to_bytes(2, "big") + body


def _tail(data: bytearray, rng: np.random.Generator) -> None:
    data += rng.integers(0, 256, int(rng.integers(1, 60)), dtype=np.uint8).tobytes()
    if rng.random() < 0.5:
        data += b"\xff\xd9"


def _one(data: bytearray, rng: np.random.Generator) -> tuple[int, int]:
    found = segments(bytes(data))
    return found[int(rng.integers(0, len(found)))]


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _flip,
    _flip,
    _flip,
    _stray,
    _remove,
    _repeat,
    _length,
    _insert,
    _tail,
)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A JPEG with one kind of damage in its headers, or behind its end."""
    out = bytearray(data)
    MUTATIONS[int(rng.integers(0, len(MUTATIONS)))](out, rng)
    return bytes(out)


def main() -> int:
    """Runs until the wanted number of mutations was accepted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--accepted", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    sources = originals()
    counts: Counter = Counter()
    refused = accepted = 0
    while accepted < args.accepted:
        stored = []
        while len(stored) < BATCH:
            data = mutated(sources[int(rng.integers(0, len(sources)))], rng)
            try:
                one = to_jpeg(data, ImagePolicy(short_side=0))
            except ImageError as error:
                counts[f"rejected: {error.reason}"] += 1
                continue
            counts["untouched" if one.untouched else "re-encoded"] += 1
            stored.append((data, one.data))
        for (data, _), error in zip(stored, check_decodes([one for _, one in stored])):
            if error:
                refused += 1
                print(f"DALI refuses: {error}; {data.hex()[:200]} …", flush=True)
        accepted += len(stored)
    print(", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())))
    print(f"{accepted:,} accepted mutations, {refused:,} of them refused by DALI")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
