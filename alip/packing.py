"""Transformer blocks over packed sequences: every row of the matrix is a real token, and attention stays in its text.

Linear layers, normalisation and MLPs do not care which sequence a row belongs to, so they run once over all
tokens of a batch, without padding. Only attention needs the sequences apart. For that the sequences are sorted by
length and cut into a few groups of similar length; each group is padded to its own longest, in attention alone,
where short sequences cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

GROUP_STEP = 8  # lengths of one group lie within this many tokens of each other: see benchmarks/notes/step.md
# On a CPU, plain matrix products beat the fused kernel for short sequences (2× in fp32, 6× in bf16).
PLAIN_ATTENTION_LENGTH = 256


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


def packable(transformer: nn.Module) -> bool:
    """True if `run_blocks` computes what this open_clip transformer computes: standard pre-norm blocks only."""
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    return (
        type(transformer) is Transformer
        and transformer.batch_first
        and all(
            type(block) is ResidualAttentionBlock
            and type(block.attn) is nn.MultiheadAttention
            and block.attn.in_proj_weight is not None
            and block.attn.dropout == 0
            for block in transformer.resblocks
        )
    )


def run_blocks(
    transformer: nn.Module, x: torch.Tensor, plan: Packing, causal: bool, compiled: bool = False
) -> torch.Tensor:
    """Runs all blocks over packed rows x (T, width); returns (T, width), or (N, width) if the plan keeps one row each.

    What is not kept is never read, so the last block computes queries, projection and MLP for the kept rows only.
    With `causal` the kept row must be each sequence's last. compiled: torch.compile what works on rows alone.
    """
    blocks = list(transformer.resblocks)
    for block in blocks:
        pooled = block is blocks[-1] and plan.keep is not None
        if transformer.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(_block, block, x, plan, causal, pooled, compiled, use_reentrant=False)
        else:
            x = _block(block, x, plan, causal, pooled, compiled)
    return x


def _block(block: nn.Module, x: torch.Tensor, plan: Packing, causal: bool, pooled: bool, compiled: bool):
    """One pre-norm residual block, made of open_clip's own modules: (T, width) → (T, width), pooled → (N, width)."""
    normed = block.ln_1(x)
    if pooled:
        x = take_rows(x, plan.keep) + block.ls_1(_pooled_attention(block.attn, normed, plan))
    else:
        x = x + block.ls_1(_attention(block.attn, normed, plan, causal))
    return (_compiled_feed_forward() if compiled else _feed_forward)(block, x)


def _feed_forward(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x + block.ls_2(block.mlp(block.ln_2(x)))


@lru_cache(maxsize=1)
def _compiled_feed_forward():
    # The number of rows differs from batch to batch; the groups, which differ more, are left out of the graph.
    return torch.compile(_feed_forward, dynamic=True)


def _attention(attn: nn.MultiheadAttention, x: torch.Tensor, plan: Packing, causal: bool) -> torch.Tensor:
    """Self-attention within each sequence: (T, width) → (T, width)."""
    qkv = _spread(F.linear(x, attn.in_proj_weight, attn.in_proj_bias), plan)
    mixed = []
    for part, (count, length) in zip(qkv.split([count * length for count, length in plan.groups]), plan.groups):
        q, k, v = part.view(count, length, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        # Padding comes after the real tokens, so the causal mask hides it from them.
        heads = attend(q, k, v, causal=causal)
        mixed.append(heads.transpose(1, 2).reshape(count * length, attn.embed_dim))
    mixed = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    if plan.slots is not None:
        mixed = take_rows(mixed, plan.slots)
    return F.linear(mixed, attn.out_proj.weight, attn.out_proj.bias)


def _pooled_attention(attn: nn.MultiheadAttention, x: torch.Tensor, plan: Packing) -> torch.Tensor:
    """Attention of the kept row of each sequence over its whole sequence: (T, width) → (N, width)."""
    width = attn.embed_dim
    queries = F.linear(take_rows(x, plan.keep), attn.in_proj_weight[:width], attn.in_proj_bias[:width])
    kv = _spread(F.linear(x, attn.in_proj_weight[width:], attn.in_proj_bias[width:]), plan)
    mixed = []
    parts = kv.split([count * length for count, length in plan.groups])
    masks = plan.masks or [None] * len(plan.groups)
    for q, part, mask, (count, length) in zip(queries.split([n for n, _ in plan.groups]), parts, masks, plan.groups):
        k, v = part.view(count, length, 2, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q = q.view(count, attn.num_heads, 1, attn.head_dim)
        mixed.append(attend(q, k, v, mask=mask).reshape(count, width))
    mixed = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    return F.linear(mixed, attn.out_proj.weight, attn.out_proj.bias)


def attend(q, k, v, causal: bool = False, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax attention of q (n, heads, Lq, d) over k, v (n, heads, L, d), by the kernel that suits the device.

    mask: (n, 1, 1, L), True where a key may be seen.
    """
    length = k.shape[-2]
    if q.device.type != "cpu" or length > PLAIN_ATTENTION_LENGTH:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril_()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


def _spread(x: torch.Tensor, plan: Packing) -> torch.Tensor:
    """Packed rows (T, width) at their places among the padded ones (S, width); zeros between."""
    if plan.slots is None:
        return x
    size = sum(count * length for count, length in plan.groups)
    return x.new_zeros(size, x.shape[1]).index_copy(0, plan.slots, x)


class _TakeRows(torch.autograd.Function):
    """`x[index]` for an index without repeats: the gradient is then a copy, not a (slow or atomic) sum."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_copy_(0, index, grad), None


def take_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows `index` (n,), none twice, of x (T, width)."""
    return _TakeRows.apply(x, index)
