"""Which of a sample's captions a training step takes: one for each epoch, a pure function of (seed, epoch, sample)."""

from __future__ import annotations

import numpy as np

from alip.data.order import uniform

SAMPLING = ("random", "first", "round-robin")
_STREAM = 100  # of order.uniform; augmentation uses those below


def choose_captions(sampling: str, counts: np.ndarray, seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
    """The number of the caption that each of n samples has in an epoch, int64 (n,), from 0 to counts - 1.

    sampling: `random`: any, each with the same probability; `first`; `round-robin`: one after the other, starting at a
    random one, so that a sample with k captions has had each once after k epochs. counts: (n,) captions of each sample;
    index: (n,) the samples' positions in the dataset. The same on any number of ranks, from any position on.
    """
    if sampling == "first":
        return np.zeros(len(index), np.int64)
    if sampling == "random":
        return (uniform(seed, epoch, index, _STREAM) * counts).astype(np.int64)
    if sampling == "round-robin":
        return ((uniform(seed, 0, index, _STREAM) * counts).astype(np.int64) + epoch) % counts
    raise ValueError(f"unknown caption sampling {sampling!r}: one of {', '.join(SAMPLING)}")
