"""Packed sequences: the plan by which every row of a matrix is a real token, and none is padding.

Linear layers, normalisation and MLPs do not care which sequence a row belongs to, so they run once over all
tokens of a batch, without padding. Only attention needs the sequences apart. For that the sequences are sorted by
length and cut into a few groups of similar length; each group is padded to its own longest, in attention alone,
where short sequences cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

GROUP_STEP = 8  # lengths of one group lie within this many tokens of each other: see benchmarks/notes/step.md


@dataclass(frozen=True)
class Packing:
    """How N sequences of several lengths lie in one matrix of T = sum(lengths) rows, shortest sequence first.

    groups: (count, length) of each run of sequences that attention handles together, `length` being the longest;
        the groups' padded rows number S = sum(count·length).
    slots: (T,) each row's place among the S padded ones; None if no group needs padding (then S = T).
    masks: for each group None, or (count, 1, 1, length) True at real tokens; None if no group needs padding.
    keep: (N,) the row that is pooled, for each sequence in packed order; None if all rows are wanted.
    source: (T,) row's place in the padded (N, context_length) matrix, flattened.
    position: (T,) row's place within its own sequence.
    restore: (N,) packed sequence of each original one: `pooled[restore]` is in the order of the batch.
    """

    groups: tuple[tuple[int, int], ...]
    slots: torch.Tensor | None = None
    masks: tuple[torch.Tensor | None, ...] | None = None
    keep: torch.Tensor | None = None
    source: torch.Tensor | None = None
    position: torch.Tensor | None = None
    restore: torch.Tensor | None = None

    @property
    def padded_rows(self) -> int:
        """S, rows of all groups with their padding."""
        return sum(count * length for count, length in self.groups)


def pack(lengths: torch.Tensor, context_length: int, group_step: int = GROUP_STEP) -> Packing:
    """The packing of sequences with these lengths (N,), each at least 1, whose last real token is the pooled one.

    The plan is made on the CPU (its shapes steer what is launched) and sent to the device of `lengths` in one piece.
    """
    device = lengths.device
    lengths, order = lengths.cpu().sort(stable=True)
    number = torch.arange(len(order))
    ends = lengths.cumsum(0)
    sequence = torch.repeat_interleave(number, lengths)
    position = torch.arange(len(sequence)) - (ends - lengths)[sequence]
    source = order[sequence] * context_length + position
    restore = torch.empty_like(order).scatter_(0, order, number)

    _, group, counts = ((lengths + group_step - 1) // group_step).unique_consecutive(
        return_inverse=True, return_counts=True
    )
    longest = lengths[counts.cumsum(0) - 1]
    groups = tuple(zip(counts.tolist(), longest.tolist()))
    padded = longest[group]
    slots = (padded.cumsum(0) - padded)[sequence] + position

    plan = torch.cat([slots, ends - 1, source, position, restore, lengths]).to(device, non_blocking=True)
    rows, count = len(sequence), len(order)
    slots, keep, source, position, restore, lengths = plan.split([rows, count, rows, rows, count, count])
    if sum(count * length for count, length in groups) == rows:
        return Packing(groups, None, None, keep, source, position, restore)
    masks = tuple(
        (torch.arange(length, device=device) < part[:, None])[:, None, None]
        for part, (_, length) in zip(lengths.split([count for count, _ in groups]), groups)
    )
    return Packing(groups, slots, masks, keep, source, position, restore)
