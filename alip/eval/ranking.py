"""Ranks of the right answers, counted tile by tile: no sort, and never the whole score matrix.

The rank of a right answer is the number of wrong ones that score at least as high: **a tie counts against us**.
Each score is looked at once for each direction, while its tile is in the cache. A tile's comparisons are bytes of 0
and 1; eight of them are added at a time as one 64-bit word, which is exact as long as no byte passes 255.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# A tile of comparisons has at most 255 rows and 255 words of 8 columns, so that no byte of a sum overflows.
_TILE_ROWS = 255
_TILE_COLUMNS = 255 * 8
# The matrix product is cheaper in larger pieces: 8 MB of scores on a CPU, each then counted in the small tiles above;
# on a GPU 500 MB, so that starting the work takes less time than the work.
_CPU_BLOCK = (2 * _TILE_ROWS, 2 * _TILE_COLUMNS)
_GPU_BLOCK = (16 * _TILE_ROWS, 16 * _TILE_COLUMNS)
# Products of fewer rows or columns have other kernels on a CPU, in which equal rows do not give equal scores.
_LEAST = 16

Block = tuple[int, int, int, int]  # first and past-the-last image, first and past-the-last caption


@dataclass(frozen=True)
class Ranks:
    """How many wrong answers score as high as the right one or higher; 0 is the best.

    image_to_text: (images,) int64, for the image's best caption; -1 for an image that has no caption.
    text_to_image: (captions,) int64.
    """

    image_to_text: Tensor
    text_to_image: Tensor


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever a training run allows itself (TF32, bf16)."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def ranks_from_scores(scores: Tensor, caption_owner: Tensor) -> Ranks:
    """Ranks from scores (images, captions), any float type; caption_owner (captions,) holds image numbers."""
    images, captions = scores.shape
    owner = _checked_owner(caption_owner, images, captions, scores.device)
    positives = scores[owner, torch.arange(captions, device=scores.device)]
    # A NaN among the wrong answers would count as worse than the right one.
    if not bool(torch.isfinite(positives).all()) or bool(scores.amax().isnan()):
        raise ValueError("the scores hold NaN or infinity")
    if scores.dtype not in (torch.float32, torch.float64):
        scores, positives = scores.float(), positives.float()
    return _count(lambda block: scores, [(0, images, 0, captions)], images, owner, positives)


def ranks_from_features(image_features: Tensor, caption_features: Tensor, caption_owner: Tensor) -> Ranks:
    """Ranks from L2-normalised features (images, D) and (captions, D); needs memory for one block of scores only.

    Computed in float32 on the features' device. The right answers' scores come from the very same block products that
    they are compared with, so that a score never beats itself by a rounding error, and equal rows tie exactly.
    """
    images, captions = len(image_features), len(caption_features)
    owner = _checked_owner(caption_owner, images, captions, image_features.device)
    if not bool(torch.isfinite(image_features).all() and torch.isfinite(caption_features).all()):
        raise ValueError("the features hold NaN or infinity")
    image_features, caption_features = image_features.float(), caption_features.float()
    shape = _CPU_BLOCK if image_features.device.type == "cpu" else _GPU_BLOCK
    rows, columns = (max(_LEAST, min(most, own)) for most, own in zip(shape, (images, captions)))
    blocks = _blocks(images, captions, rows, columns)
    space = torch.empty(rows, columns, device=image_features.device)

    def product(block: Block) -> Tensor:
        # Blocks at the edge are filled up with zeros: every block has the same shape and so the same rounding.
        left = _filled(image_features[block[0] : block[1]], rows)
        right = _filled(caption_features[block[2] : block[3]], columns)
        torch.matmul(left, right.T, out=space)
        return space[: block[1] - block[0], : block[3] - block[2]]

    with full_precision():
        positives = _positives(product, blocks, owner)
        return _count(product, blocks, images, owner, positives)


def _checked_owner(caption_owner: Tensor, images: int, captions: int, device: torch.device) -> Tensor:
    owner = torch.as_tensor(caption_owner, dtype=torch.int64, device=device)
    if owner.shape != (captions,):
        raise ValueError(f"caption_owner has shape {tuple(owner.shape)}, but there are {captions} captions")
    if images == 0 or captions == 0:
        raise ValueError("nothing to rank: no images or no captions")
    if int(owner.min()) < 0 or int(owner.max()) >= images:
        raise ValueError(f"caption_owner must lie in 0 … {images - 1}")
    return owner


def _filled(rows: Tensor, count: int) -> Tensor:
    return rows if len(rows) == count else F.pad(rows, (0, 0, 0, count - len(rows)))


def _blocks(images: int, captions: int, rows: int, columns: int) -> list[Block]:
    return [
        (top, min(top + rows, images), left, min(left + columns, captions))
        for top in range(0, images, rows)
        for left in range(0, captions, columns)
    ]


def _positives(scores_of: Callable[[Block], Tensor], blocks: list[Block], owner: Tensor) -> Tensor:
    """Each caption's score with its own image: only the blocks that hold such a pair are computed."""
    positives = torch.empty(len(owner), device=owner.device)
    for block in blocks:
        top, bottom, left, right = block
        inside = ((owner[left:right] >= top) & (owner[left:right] < bottom)).nonzero().squeeze(1)
        if len(inside):
            positives[left + inside] = scores_of(block)[owner[left + inside] - top, inside]
    return positives


def _count(
    scores_of: Callable[[Block], Tensor], blocks: list[Block], images: int, owner: Tensor, positives: Tensor
) -> Ranks:
    """Counts the scores that are at least the right answer's, in both directions, and takes the right answers off."""
    captions = len(owner)
    lowest = torch.finfo(positives.dtype).min
    best = torch.full((images,), lowest, dtype=positives.dtype, device=owner.device)
    best.scatter_reduce_(0, owner, positives, "amax")
    image_count = torch.zeros(images, dtype=torch.int64, device=owner.device)
    caption_count = torch.zeros(captions, dtype=torch.int64, device=owner.device)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for block in blocks:
            top, bottom, left, right = block
            counts = _count_block(scores_of(block), best[top:bottom], positives[left:right], pool)
            image_count[top:bottom] += counts[0]
            caption_count[left:right] += counts[1]
    own_level = torch.zeros_like(image_count).scatter_add_(0, owner, (positives >= best[owner]).long())
    has_caption = torch.zeros(images, dtype=torch.bool, device=owner.device).index_fill_(0, owner, True)
    image_to_text = torch.where(has_caption, image_count - own_level, torch.full_like(image_count, -1))
    return Ranks(image_to_text, caption_count - 1)


def _count_block(scores: Tensor, best: Tensor, positives: Tensor, pool: ThreadPoolExecutor) -> tuple[Tensor, Tensor]:
    """One block's counts: (rows,) at least each row's best, and (columns,) at least each column's positive."""
    if scores.device.type != "cpu":
        return (scores >= best[:, None]).sum(1), (scores >= positives[None, :]).sum(0)
    # Threads of our own, each with one long piece of work: torch's operations would each wait for all of its threads,
    # thousands of times, which on a busy machine takes longer than the work.
    pieces = max(1, min(torch.get_num_threads(), len(scores) // _TILE_ROWS))
    edges = [len(scores) * piece // pieces for piece in range(pieces + 1)]
    limits = positives.numpy()
    parts = [scores[top:bottom].numpy() for top, bottom in pairwise(edges)]
    lows = [best[top:bottom].numpy() for top, bottom in pairwise(edges)]
    counts = list(pool.map(_count_rows, parts, lows, [limits] * pieces))
    return torch.from_numpy(np.concatenate([rows for rows, _ in counts])), torch.from_numpy(sum(c for _, c in counts))


def _count_rows(scores: np.ndarray, best: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_count_block` for one thread. Each tile is compared twice while it is in the cache."""
    rows, columns = scores.shape
    row_count, column_count = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    marks = np.zeros((_TILE_ROWS, _TILE_COLUMNS), bool)
    words = marks.view(np.int64)
    for left in range(0, columns, _TILE_COLUMNS):
        width = min(_TILE_COLUMNS, columns - left)
        marks[:, width:] = False  # the columns past the edge stay 0
        for top in range(0, rows, _TILE_ROWS):
            tile = scores[top : top + _TILE_ROWS, left : left + width]
            height = len(tile)
            np.greater_equal(tile, best[top : top + height, None], out=marks[:height, :width])
            row_count[top : top + height] += words[:height].sum(1).view(np.uint8).reshape(height, 8).sum(1, np.int64)
            np.greater_equal(tile, positives[None, left : left + width], out=marks[:height, :width])
            column_count[left : left + width] += words[:height].sum(0).view(np.uint8)[:width]
    return row_count, column_count
