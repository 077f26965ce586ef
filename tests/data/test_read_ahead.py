"""Reading ahead asks for every record of a rank once, before it is read, and changes nothing."""

import os
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from alip.data import read_ahead
from alip.data.loader import create_loader
from alip.data.order import EpochOrder
from alip.data.sample_reader import Records
from alip.data.shards import load_manifest
from alip.distributed import World

FORM = {"image_size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.3, 0.3, 0.3)}


def brute_force(starts, ends, gap):
    merged = []
    for start, end in sorted(zip(starts.tolist(), ends.tolist())):
        if merged and start - merged[-1][1] < gap:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([start, end])
    return merged


@pytest.mark.parametrize("gap", [1, 50, 10_000])
def test_ranges_are_merged_as_by_hand(gap):
    rng = np.random.default_rng(gap)
    for count in (1, 2, 300):
        starts = rng.integers(0, 20_000, count)
        ends = starts + rng.integers(1, 100, count)
        merged = read_ahead.merge_ranges(starts, ends, gap)
        assert np.stack(merged, axis=1).tolist() == brute_force(starts, ends, gap)


@dataclass
class Advice:
    """Stands for the system: what was asked for, as bytes of each file."""

    asked: dict = field(default_factory=dict)
    requests: int = 0

    def __call__(self, descriptor, offset, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED and 0 < length <= read_ahead._REQUEST
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        self.asked.setdefault(name, np.zeros(os.path.getsize(name), dtype=int))[offset : offset + length] += 1
        self.requests += 1


@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 3)])
def test_every_record_of_a_rank_is_asked_for_once(shards, monkeypatch, rank, world_size):
    advice = Advice()
    monkeypatch.setattr(os, "posix_fadvise", advice)
    monkeypatch.setattr(read_ahead, "_GAP", 1)
    monkeypatch.setattr(read_ahead, "_REQUEST", 1000)
    before = read_ahead.ReadAhead.before

    def patient(self, number, first=0, last=0):
        """On a busy machine the batches would be read before they are asked for, and the rest given up."""
        before(self, number, first, last)
        if self._pending is not None:
            self._pending.result()

    monkeypatch.setattr(read_ahead.ReadAhead, "before", patient)
    manifest = load_manifest(shards)
    world = World(rank, rank, world_size)
    loader = create_loader(shards, 8, world=world, reader="torch", seed=3, **FORM)
    seen = [i for batch in loader.epoch(2) for i in batch.index.tolist()]
    asked_for = 0
    for name, times in advice.asked.items():
        number = [str(manifest.path(shard.rec)) for shard in manifest.shards].index(name)
        with manifest.open_shard(number) as reader:
            for i in range(len(reader)):
                start, end = reader.span(i)
                mine = int(manifest.starts[number]) + i in seen
                assert (times[start:end] == mine).all()
                asked_for += mine
    assert asked_for == len(seen) > 60 and advice.requests > asked_for


def test_advice_comes_a_window_ahead(shards, monkeypatch):
    calls = []
    monkeypatch.setattr(read_ahead, "advise", lambda records, index, stopped: calls.append(len(index)))
    monkeypatch.setattr(read_ahead, "WINDOW", 1)  # 64 samples: 8 batches of 8
    batches = [(g * 8, g * 8 + 8) for g in range(28)]
    ahead = read_ahead.ReadAhead(Records(load_manifest(shards), 49408), EpochOrder(230, 0, 0), batches)
    asked = []
    for number in range(28):
        ahead.before(number)
        ahead._pending.result()
        asked.append(sum(calls))
        assert asked[-1] >= min(224, 8 * number + 8)
    ahead.close()
    assert asked[0] == 64 and asked[1] == 128 and asked[7] == 128 and asked[8] == 192 and calls == [64, 64, 64, 32]


def test_without_the_call_batches_are_the_same(shards, monkeypatch):
    def batches():
        return list(create_loader(shards, 16, world=World(), reader="torch", **FORM).epoch(0))

    with_it = batches()
    monkeypatch.setattr(read_ahead, "AVAILABLE", False)
    monkeypatch.delattr(os, "posix_fadvise")
    assert all(torch.equal(a.image, b.image) and torch.equal(a.index, b.index) for a, b in zip(with_it, batches()))
