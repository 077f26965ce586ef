"""Weights files made to harm: zip bombs, tensors of terabytes without data, headers of gigabytes, nested values."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alip.checkpoint import load_model
from tests.fuzz import REFUSED, Target
from tests.fuzz.models import VIT, _model, _quietly


def _zip(rng: random.Random, path: Path) -> None:
    """A file of torch.save with entries that unpack to much more, or with very many of them."""
    torch.save(dict(_model().state_dict()), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    bomb = rng.choice((*entries, "archive/data/99999"))
    entries[bomb] = bytes(rng.choice((0, 1 << 20, 30 << 20)))
    packing = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(path, "w", packing, compresslevel=1) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        for number in range(rng.choice((0, 0, 5_000))):
            archive.writestr(f"archive/x/{number}", b"")


def _huge(rng: random.Random, path: Path) -> None:
    """A tensor of up to 2**50 elements that are all the same byte of the file, a value nested in itself, …"""
    state: dict[str, Any] = dict(_model().state_dict())
    name = rng.choice(list(state))
    nested: Any = {}
    for _ in range(rng.choice((10, 300))):
        nested = {"a": nested}
    state[name] = rng.choice(
        [
            torch.zeros(1).expand(2 ** rng.choice((20, 34, 50))),
            torch.zeros(1).expand(2**20, 2**20),
            torch.zeros(0, 2**40),
            torch.zeros((1,) * 60),
            torch.empty(2**40, device="meta"),
            nested,
            [torch.zeros(1)] * 10**5,
            {str(number): torch.zeros(1) for number in range(3000)},
            10**4000,
        ]
    )
    torch.save({"state_dict": state} if rng.random() < 0.5 else state, path)


def _safetensors(rng: random.Random, path: Path) -> None:
    """Lengths and offsets that the file does not have."""
    entry = {"dtype": rng.choice(("F32", "F64", "BF16", "I64", "BOOL", "F4", "x"))}
    entry |= {"shape": rng.choice(([1], [2**62], [2**62, 2**62], [-1], [0, 2**63], [1] * 3000, [], "x"))}
    entry |= {"data_offsets": rng.choice(([0, 4], [4, 0], [0, 2**62], [-4, 0], [0], [2**63, 2**64], [0, 0]))}
    header: Any = {f"k{number}": entry for number in range(rng.choice((1, 2, 20_000)))}
    header = rng.choice((header, header, {"__metadata__": {"a": "x" * 10**7}}, {"a": {"a": {"a": {}}}}, [], 3))
    text = json.dumps(header).encode()
    length = rng.choice((len(text), len(text), 0, 1, 100 << 20, 2**40, 2**63, 2**64 - 1))
    path.write_bytes(struct.pack("<Q", length) + text + bytes(rng.choice((0, 4, 1 << 20))))


def _make(rng: random.Random, folder: Path) -> Callable[[], object]:
    form, name = rng.choice(((_zip, "w.pt"), (_huge, "w.pt"), (_safetensors, "w.safetensors")))
    path = folder / name
    form(rng, path)
    return _quietly(lambda: load_model(path, rng.choice((None, VIT))))


TARGETS = [Target("hostile weights", _make, frozenset({REFUSED}))]
