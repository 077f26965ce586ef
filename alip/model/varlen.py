"""Sequences of several lengths without padding: the plan by which every row of a matrix is a real token.

Linear layers, normalisation and MLPs do not care which sequence a row belongs to, so they run once over all tokens of
a batch. Only attention needs the sequences apart. On a CPU they are sorted by length and cut into a few groups of
similar length; each group is padded to its own longest, in attention alone, where short sequences cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

GROUP_STEP = 8  # lengths within a group differ by less than this many tokens: see benchmarks/notes/step.md


@dataclass(frozen=True)
class VarlenPlan:
    """How N sequences of several lengths lie in one matrix of T = sum(lengths) rows, shortest sequence first.

    groups: (count, length) of each run of sequences that attention handles together, `length` being the longest;
        the groups' padded rows number S = sum(count·length).
    padded_index: (T,) the row of each token among the S padded ones; None if no group needs padding (then S = T).
    masks: for each group None, or (count, 1, 1, length) True at real tokens; None if no group needs padding.
    pooled_index: (N,) the row that is pooled, for each sequence in the plan's order; None if all rows are wanted.
    token_index: (T,) each row's position in the padded (N, context_length) matrix, flattened.
    position: (T,) each row's position within its own sequence.
    batch_order: (N,) the plan's sequence for each one of the batch: `pooled[batch_order]` is in the batch's order.
    """

    groups: tuple[tuple[int, int], ...]
    padded_index: torch.Tensor | None = None
    masks: tuple[torch.Tensor | None, ...] | None = None
    pooled_index: torch.Tensor | None = None
    token_index: torch.Tensor | None = None
    position: torch.Tensor | None = None
    batch_order: torch.Tensor | None = None

    @property
    def padded_rows(self) -> int:
        """S, rows of all groups with their padding."""
        return sum(count * length for count, length in self.groups)


def plan_varlen(lengths: torch.Tensor, context_length: int, group_step: int = GROUP_STEP) -> VarlenPlan:
    """The plan for sequences with these lengths (N,), each at least 1, whose last real token is the pooled one.

    It is made on the CPU (its shapes steer what is launched) and sent to the device of `lengths` in one piece.
    """
    device = lengths.device
    lengths, order = lengths.cpu().sort(stable=True)
    number = torch.arange(len(order))
    ends = lengths.cumsum(0)
    sequence = torch.repeat_interleave(number, lengths)
    position = torch.arange(len(sequence)) - (ends - lengths)[sequence]
    token_index = order[sequence] * context_length + position
    batch_order = torch.empty_like(order).scatter_(0, order, number)

    _, group, counts = ((lengths + group_step - 1) // group_step).unique_consecutive(
        return_inverse=True, return_counts=True
    )
    longest = lengths[counts.cumsum(0) - 1]
    groups = tuple(zip(counts.tolist(), longest.tolist()))
    padded = longest[group]
    padded_index = (padded.cumsum(0) - padded)[sequence] + position

    parts = [padded_index, ends - 1, token_index, position, batch_order, lengths]
    sent = torch.cat(parts).to(device, non_blocking=True).split([len(part) for part in parts])
    padded_index, pooled_index, token_index, position, batch_order, lengths = sent
    if sum(count * length for count, length in groups) == len(sequence):
        return VarlenPlan(groups, None, None, pooled_index, token_index, position, batch_order)
    masks = tuple(
        (torch.arange(length, device=device) < part[:, None])[:, None, None]
        for part, (_, length) in zip(lengths.split([count for count, _ in groups]), groups)
    )
    return VarlenPlan(groups, padded_index, masks, pooled_index, token_index, position, batch_order)
