"""Sequences of several lengths without padding: the plan by which every row of a matrix is a real token.

Linear layers, normalisation and MLPs do not care which sequence a row belongs to, so they run once over all tokens of
a batch. Only attention needs the sequences apart. A CUDA kernel for sequences of several lengths takes the rows as they
are, with the cumulative lengths. Elsewhere the sequences, sorted by length, are cut into a few groups of similar
length; each group is padded to its own longest, in attention alone, where short sequences cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

GROUP_STEP = 8  # lengths within a group differ by less than this many tokens: see benchmarks/notes/step.md


# The tensors of a plan, in the order in which they lie in its one buffer.
_PARTS = ("padded_index", "pooled_index", "token_index", "position", "batch_order", "lengths", "cumulative")


@dataclass(frozen=True)
class VarlenPlan:
    """How N sequences of several lengths lie in one matrix of T = sum(lengths) rows, shortest sequence first.

    groups: (count, length) of each run of sequences that attention handles together, `length` being the longest;
        the groups' padded rows number S = sum(count·length).
    padded_index: (T,) the row of each token among the S padded ones; None if no group needs padding (then S = T).
    lengths: (N,) of the sequences, in the plan's order; None if all of a group are of its length.
    cumulative: (N+1,) int32, the row where each sequence begins, and T; None on a CPU, where nothing reads it.
    pooled_index: (N,) the row that is pooled, for each sequence in the plan's order; None if all rows are wanted.
    token_index: (T,) each row's position in the padded (N, context_length) matrix, flattened.
    position: (T,) each row's position within its own sequence.
    batch_order: (N,) the plan's sequence for each one of the batch: `pooled[batch_order]` is in the batch's order.
    bound: no sequence is longer; unlike the longest one's length it is the same for all batches.
    buffer: all of these in one int64 tensor, if `plan_varlen` made them: what `to` sends.
    """

    groups: tuple[tuple[int, int], ...]
    padded_index: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    cumulative: torch.Tensor | None = None
    pooled_index: torch.Tensor | None = None
    token_index: torch.Tensor | None = None
    position: torch.Tensor | None = None
    batch_order: torch.Tensor | None = None
    bound: int = 0
    buffer: torch.Tensor | None = None

    @property
    def padded_rows(self) -> int:
        """S, rows of all groups with their padding."""
        return sum(count * length for count, length in self.groups)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(length for _, length in self.groups)

    @cached_property
    def masks(self) -> tuple[torch.Tensor | None, ...]:
        """For each group (count, 1, 1, length), True at real tokens; None if no group needs padding."""
        if self.padded_index is None:
            return (None,) * len(self.groups)
        parts = self.lengths.split([count for count, _ in self.groups])
        return tuple(
            (torch.arange(length, device=part.device) < part[:, None])[:, None, None]
            for part, (_, length) in zip(parts, self.groups)
        )

    def pin_memory(self) -> VarlenPlan:
        """The same in page-locked memory, from which `to` need not wait for the device."""
        return _from_buffer(self.groups, self.bound, self.buffer.pin_memory())

    def to(self, device: torch.device) -> VarlenPlan:
        """The same on a device, sent in one piece; nothing waits for it if this one is in page-locked memory."""
        if self.buffer.device == device:
            return self
        return _from_buffer(self.groups, self.bound, self.buffer.to(device, non_blocking=True))


def plan_equal(count: int, length: int, device: torch.device, pool_first: bool = False) -> VarlenPlan:
    """The plan for `count` sequences of one length, such as images; pool_first: the first row of each is pooled."""
    rows = count * length
    pooled_index = torch.arange(0, rows, length, device=device) if pool_first else None
    cumulative = None
    if device.type != "cpu":
        cumulative = torch.arange(0, rows + 1, length, dtype=torch.int32, device=device)
    return VarlenPlan(((count, length),), pooled_index=pooled_index, cumulative=cumulative, bound=length)


def plan_varlen(lengths: torch.Tensor, context_length: int, group_step: int = GROUP_STEP) -> VarlenPlan:
    """The plan for sequences with these lengths (N,), each at least 1, whose last real token is the pooled one.

    It is made on the CPU (its shapes decide what is launched) and sent to the device of `lengths`: lengths on a CUDA
    device therefore cost a wait for it, which data loaders avoid by planning before they send the tokens.
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

    cumulative = torch.cat([ends.new_zeros(1), ends])
    buffer = torch.cat([padded_index, ends - 1, token_index, position, batch_order, lengths, cumulative])
    return _from_buffer(groups, context_length, buffer).to(device)


def _from_buffer(groups: tuple[tuple[int, int], ...], bound: int, buffer: torch.Tensor) -> VarlenPlan:
    """The plan whose tensors lie in `buffer` one after another: three of T numbers, three of N, one of N + 1."""
    count = sum(n for n, _ in groups)
    rows = (len(buffer) - 4 * count - 1) // 3
    sizes = [rows, count, rows, rows, count, count, count + 1]
    parts = dict(zip(_PARTS, buffer.split(sizes), strict=True))
    if sum(n * length for n, length in groups) == rows:
        parts["padded_index"] = None
    parts["cumulative"] = parts["cumulative"].int() if buffer.device.type != "cpu" else None
    return VarlenPlan(groups, bound=bound, buffer=buffer, **parts)
