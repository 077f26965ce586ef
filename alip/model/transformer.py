"""open_clip's transformer blocks over unpadded tokens: what works on rows alone runs once over all of them."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from alip.model.attention import pooled_attention, self_attention, take_rows
from alip.varlen import VarlenPlan


def runs_unpadded(transformer: nn.Module) -> bool:
    """True if `run_blocks` computes what this open_clip transformer computes: standard pre-norm blocks only."""
    return (
        type(transformer) is Transformer
        and transformer.batch_first
        and all(
            type(block).forward is ResidualAttentionBlock.forward  # also of a class that FSDP derives
            and type(block.attn) is nn.MultiheadAttention
            and block.attn.in_proj_weight is not None
            and block.attn.dropout == 0
            for block in transformer.resblocks
        )
    )


def run_blocks(
    transformer: nn.Module, x: torch.Tensor, plan: VarlenPlan, causal: bool, compiled: bool = False
) -> torch.Tensor:
    """Runs all blocks over unpadded tokens x (T, width); returns (T, width), or (N, width) if the plan
    pools one row of each sequence.

    Only pooled rows are read after the last block, so it computes queries, projection and MLP for these alone.
    With `causal` the pooled row must be each sequence's last. compiled: torch.compile what works on rows alone.
    """
    blocks = list(transformer.resblocks)
    for block in blocks:
        pooled = block is blocks[-1] and plan.pooled_index is not None
        # A divided model's block gathers its parameters around its own `run_block` (alip.train.sharding).
        run = getattr(block, "run_block", None) or partial(run_block, block)
        if transformer.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(run, x, plan, causal, pooled, compiled, use_reentrant=False)
        else:
            x = run(x, plan, causal, pooled, compiled)
    return x


def run_block(block: nn.Module, x: torch.Tensor, plan: VarlenPlan, causal: bool, pooled: bool, compiled: bool):
    """One pre-norm residual block, made of open_clip's own modules: (T, width) → (T, width), pooled → (N, width)."""
    normed = block.ln_1(x)
    if pooled:
        x = take_rows(x, plan.pooled_index) + block.ls_1(_pooled_attention(block.attn, normed, plan))
    else:
        x = x + block.ls_1(_attention(block.attn, normed, plan, causal))
    return (_compiled_feed_forward() if compiled else _feed_forward)(block, x)


def _feed_forward(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x + block.ls_2(block.mlp(block.ln_2(x)))


@lru_cache(maxsize=1)
def _compiled_feed_forward():
    # The number of rows differs from batch to batch; the groups, which differ more, stay outside the graph.
    return torch.compile(_feed_forward, dynamic=True)


def _attention(attn: nn.MultiheadAttention, x: torch.Tensor, plan: VarlenPlan, causal: bool) -> torch.Tensor:
    """Self-attention within each sequence: (T, width) → (T, width)."""
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    mixed = self_attention(qkv, attn.num_heads, plan, causal)
    return F.linear(mixed, attn.out_proj.weight, attn.out_proj.bias)


def _pooled_attention(attn: nn.MultiheadAttention, x: torch.Tensor, plan: VarlenPlan) -> torch.Tensor:
    """Attention of the pooled row of each sequence over its whole sequence: (T, width) → (N, width)."""
    width = attn.embed_dim
    queries = F.linear(take_rows(x, plan.pooled_index), attn.in_proj_weight[:width], attn.in_proj_bias[:width])
    kv = F.linear(x, attn.in_proj_weight[width:], attn.in_proj_bias[width:])
    mixed = pooled_attention(queries, kv, attn.num_heads, plan)
    return F.linear(mixed, attn.out_proj.weight, attn.out_proj.bias)
