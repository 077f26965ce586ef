"""Transformer blocks over packed sequences: every row of the matrix is a real token, and attention stays in its text.

Linear layers, normalisation and MLPs do not care which sequence a row belongs to, so they run once over all
tokens of a batch, without padding. Only attention needs the sequences apart: they are sorted by length, and each
group of equal length is a view of the packed matrix, so nothing is copied to get there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Packing:
    """How N sequences of several lengths lie in one matrix of T = sum(lengths) rows, shortest sequence first.

    source: (T,) row's place in the padded (N, context_length) matrix, flattened. None: the padded order itself.
    position: (T,) row's place within its own sequence.
    keep: (N,) the row that is pooled, for each sequence in packed order.
    restore: (N,) packed sequence of each original one: `pooled[restore]` is in the order of the batch.
    groups: (count, length) of each run of sequences with equal length, in packed order; count·length sum up to T.
    """

    source: torch.Tensor
    position: torch.Tensor
    keep: torch.Tensor
    restore: torch.Tensor
    groups: tuple[tuple[int, int], ...]


def pack(lengths: torch.Tensor, context_length: int) -> Packing:
    """The packing of sequences with these lengths (N,), whose last real token is the pooled one.

    The plan is made on the CPU (its shapes steer what is launched) and sent to the device of `lengths` at once.
    """
    device = lengths.device
    lengths = lengths.cpu()
    sorted_lengths, order = lengths.sort(stable=True)
    ends = sorted_lengths.cumsum(0)
    sequence = torch.repeat_interleave(torch.arange(len(order)), sorted_lengths)
    position = torch.arange(len(sequence)) - (ends - sorted_lengths)[sequence]
    source = order[sequence] * context_length + position
    restore = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    values, counts = sorted_lengths.unique_consecutive(return_counts=True)
    groups = tuple(zip(counts.tolist(), values.tolist()))
    plan = torch.cat([source, position, ends - 1, restore]).to(device, non_blocking=True)
    source, position, keep, restore = plan.split([len(source), len(position), len(order), len(order)])
    return Packing(source, position, keep, restore, groups)


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
    transformer: nn.Module,
    x: torch.Tensor,
    groups: tuple[tuple[int, int], ...],
    causal: bool,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Runs all blocks over packed rows x (T, width); returns (T, width), or (N, width) with `keep`.

    groups: (count, length) of sequences that lie one after another in x.
    keep: (N,) the one row of each sequence that is pooled. The last block then computes queries, projection and
        MLP for those rows only: nothing reads the others. With `causal` it must be each sequence's last row.
    """
    for block in transformer.resblocks:
        last = keep if block is transformer.resblocks[-1] else None
        if transformer.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(_block, block, x, groups, causal, last, use_reentrant=False)
        else:
            x = _block(block, x, groups, causal, last)
    return x


def _block(block: nn.Module, x, groups, causal: bool, keep) -> torch.Tensor:
    """One pre-norm residual block with open_clip's own modules; with `keep`, output (N, width) for those rows."""
    normed = block.ln_1(x)
    if keep is None:
        x = x + block.ls_1(_attention(block.attn, normed, groups, causal))
    else:
        x = x[keep] + block.ls_1(_pooled_attention(block.attn, normed, groups, keep))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _attention(attn: nn.MultiheadAttention, x: torch.Tensor, groups, causal: bool) -> torch.Tensor:
    """Self-attention within each sequence: (T, width) → (T, width)."""
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    mixed = []
    for part, (count, length) in zip(qkv.split([count * length for count, length in groups]), groups):
        q, k, v = part.view(count, length, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        mixed.append(heads.transpose(1, 2).reshape(count * length, attn.embed_dim))
    mixed = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    return F.linear(mixed, attn.out_proj.weight, attn.out_proj.bias)


def _pooled_attention(attn: nn.MultiheadAttention, x: torch.Tensor, groups, keep: torch.Tensor) -> torch.Tensor:
    """Attention of one query row per sequence over its whole sequence: (T, width) → (N, width)."""
    width = attn.embed_dim
    queries = F.linear(x[keep], attn.in_proj_weight[:width], attn.in_proj_bias[:width])
    kv = F.linear(x, attn.in_proj_weight[width:], attn.in_proj_bias[width:])
    mixed = []
    parts = kv.split([count * length for count, length in groups])
    for q, part, (count, length) in zip(queries.split([count for count, _ in groups]), parts, groups):
        k, v = part.view(count, length, 2, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q = q.view(count, 1, attn.num_heads, attn.head_dim).transpose(1, 2)
        mixed.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, width))
    mixed = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    return F.linear(mixed, attn.out_proj.weight, attn.out_proj.bias)
