"""The state of this process's random generators: captured for checkpoints, replayed, and kept from disturbance."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def get_randomness(device: torch.device) -> dict[str, Any]:
    """The state of every generator of this process, as tensors and plain values. On a GPU it reads the host's copy of
    the generator's state, which does not wait for the device."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), gauss_next],
    }


def set_randomness(state: dict[str, Any], device: torch.device) -> None:
    """Restores what `get_randomness` gave."""
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


@contextlib.contextmanager
def same_randomness_after(device: torch.device) -> Iterator[None]:
    """Restores every generator at the end, whatever happens inside."""
    before = get_randomness(device)
    try:
        yield
    finally:
        set_randomness(before, device)
