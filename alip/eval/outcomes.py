"""What happened to every test item, in small arrays beside results.json: what intervals and paired tests need.

Arrays by name, in the order of the dataset's items:

classification: `label` (n,); `rank` (n,) or (seeds, n), how many classes come before the right one; where the primary
metric needs it, `prediction`, `score` (second class over first), each like `rank`, or `group` (n,). Several right
classes an image: `hit_top1` (n,), `scores` and `targets` (classes, n). `…_truncated`: under the protocol `alip`.
retrieval: `image_rank` (images,), -1 without a caption; `caption_rank`, `caption_owner` (captions,); `single_…` too.
anything else: `hit_NAME` (n,), 1 where the item counts for the metric NAME, else 0; `value_NAME` (n,), a fraction, or
NaN where NAME is not about the item; `group` (n,) where the primary metric is a mean over groups of the one `hit_NAME`,
-1 for one that is not in it; `stratum` (n,), what else is fixed about the items.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from alip.files import atomic_path

FOLDER = "outcomes"
_LAST_RANK = np.iinfo(np.uint16).max  # ranks from here on are all written as this one

BY_MODEL = ("rank", "prediction", "score", "scores")
_OF_DATASET = ("label", "caption_owner", "group", "stratum", "targets")

Outcomes = dict[str, np.ndarray]


def classification_outcomes(labels: Tensor, ranks: Tensor, **others: Tensor) -> Outcomes:
    """labels (n,), ranks (n,) or (seeds, n); others: further arrays of ranks by name."""
    return {"label": _small(labels), "rank": _small(ranks), **{name: _small(one) for name, one in others.items()}}


def retrieval_outcomes(image_rank: Tensor, caption_rank: Tensor, caption_owner: Tensor, prefix: str = "") -> Outcomes:
    """Ranks both ways, and each caption's image; prefix: of the arrays' names."""
    arrays = {"image_rank": image_rank, "caption_rank": caption_rank, "caption_owner": caption_owner}
    return {prefix + name: array.cpu().numpy().astype(np.int32) for name, array in arrays.items()}


def _small(values: Tensor) -> np.ndarray:
    return np.minimum(values.cpu().numpy(), _LAST_RANK).astype(np.uint16)


def path_of(folder: Path, identity: str) -> Path:
    """The file that belongs to the entry of that identity in the folder's results.json."""
    return folder / FOLDER / f"{identity}.safetensors"


def save(folder: Path, identity: str, outcomes: Mapping[str, np.ndarray]) -> None:
    """Writes an entry's outcomes, atomically."""
    with atomic_path(path_of(folder, identity)) as path:
        save_file({name: np.ascontiguousarray(array) for name, array in outcomes.items()}, str(path))


def load(folder: Path, identity: str) -> Outcomes | None:
    """An entry's outcomes; None where there are none (an older file, or a damaged one, which is reported)."""
    path = path_of(folder, identity)
    if not path.is_file():
        return None
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        print(f"warning: {path} cannot be read ({error}); evaluate again for paired tests")
        return None


def same_items(one: Outcomes, other: Outcomes) -> bool:
    """Whether both are of the same items, so that they may be paired."""
    common = one.keys() & other.keys()
    if not common or any(one[name].shape[-1] != other[name].shape[-1] for name in common):
        return False
    own = [name for name in _OF_DATASET if name in one or name in other]
    return all(name in common and np.array_equal(one[name], other[name]) for name in own)


def class_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) int64: how many classes come before the right one; of equal logits the lower class number is first.

    logits (n, classes), labels (n,).
    """
    right = logits.gather(1, labels[:, None])
    numbers = torch.arange(logits.shape[1], device=logits.device)
    return (logits > right).sum(1) + ((logits == right) & (numbers < labels[:, None])).sum(1)
