"""Sampling of words, each row from random numbers of its own: a caption does not depend on the rest of its batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alip.caption.captioners import Decoding


class Sampler:
    """Samples the next word of each row after temperature, top-k and top-p.

    seeds: one number below 2**63 for each row; None: from torch's generator. The n-th word of a row is decided by the
    n-th number of its own stream, so that up to rounding it is a function of the seed and the row's logits.
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int] | None, rows: int) -> None:
        self.decoding = decoding
        if seeds is None:
            seeds = torch.randint(2**63 - 1, (rows,)).tolist()
        self._streams = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, logits: Tensor) -> Tensor:
        """(rows, vocabulary) logits → (rows,) words."""
        decoding = self.decoding
        probabilities = narrow(logits.float() / decoding.temperature, decoding.top_k, decoding.top_p)
        thresholds = torch.tensor([stream.random() for stream in self._streams], device=logits.device)
        cumulated = probabilities.double().cumsum(dim=-1)
        # Below the total, which rounding may leave a little off 1; the first word past the threshold has a probability.
        wanted = (thresholds.double() * cumulated[:, -1])[:, None]
        return torch.searchsorted(cumulated, wanted, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


class SampledWords:
    """A logits processor for transformers' greedy `generate`: only the sampled word keeps a chance."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) scores → 0 for the sampled word of each row, -inf for the others."""
        words = self.sampler(scores)
        return torch.full_like(scores, -torch.inf).scatter(1, words[:, None], 0.0)


def narrow(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """(rows, vocabulary) logits → probabilities with all but the top_k words, then the top_p mass, set to zero.

    The word that crosses the mass top_p stays in, so at least one word always does.
    """
    if top_k:
        smallest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if top_p < 1.0:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities
