"""open_clip's transformer blocks over unpadded tokens: what works on rows alone runs once over all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
import torch._dynamo
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from alip.model.attention import (
    choose_kernel,
    pooled_attention,
    self_attention,
    take_rows,
    varlen_pooled,
    varlen_self,
)
from alip.varlen import VarlenPlan

_GRAPHS = 64  # of one function, at most


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
    With `causal` the pooled row must be each sequence's last. compiled: see `run_block`.
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
    """One pre-norm residual block, made of open_clip's own modules: (T, width) → (T, width), pooled → (N, width).

    compiled: with the varlen kernel the whole block is one graph; elsewhere, where attention runs group by group, the
    two halves around it are. Norms, casts, biases, GELU and residual sums then are part of few kernels, and the norms'
    results are written once, in the type of the product that reads them.
    """
    index = plan.pooled_index if pooled else None
    heads = block.attn.num_heads
    compute = compiled_function if compiled else _as_is
    kernel = choose_kernel(x.device, _compute_type(x), x.shape[1] // heads, plan.longest)
    if kernel == "varlen":
        return compute(_whole_block, causal)(block, x, index, plan.cumulative, plan.bound, causal)
    rows, queries, kv = compute(_before_attention, causal)(block, x, index)
    if kv is None:
        mixed = self_attention(queries, heads, plan, causal)
    else:
        mixed = pooled_attention(queries, kv, heads, plan)
    return compute(_after_attention, causal)(block, rows, mixed)


def _whole_block(
    block: nn.Module, x: torch.Tensor, index: torch.Tensor | None, cumulative: torch.Tensor, bound: int, causal: bool
) -> torch.Tensor:
    rows, queries, kv = _before_attention(block, x, index)
    heads = block.attn.num_heads
    if kv is None:
        mixed = varlen_self(queries, heads, cumulative, bound, causal)
    else:
        mixed = varlen_pooled(queries, kv, heads, cumulative, bound)
    return _after_attention(block, rows, mixed)


def _before_attention(
    block: nn.Module, x: torch.Tensor, index: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x (T, width) → the rows that the block's output continues, and attention's input.

    Without `index` all rows, their queries, keys and values (T, 3·width), and None. With it the rows at `index`, their
    queries (N, width), and the keys and values of all rows (T, 2·width).
    """
    attn, normed = block.attn, block.ln_1(x)
    if index is None:
        return x, F.linear(normed, attn.in_proj_weight, attn.in_proj_bias), None
    width = attn.embed_dim
    queries = F.linear(take_rows(normed, index), attn.in_proj_weight[:width], attn.in_proj_bias[:width])
    kv = F.linear(normed, attn.in_proj_weight[width:], attn.in_proj_bias[width:])
    return take_rows(x, index), queries, kv


def _after_attention(block: nn.Module, rows: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """Rows and what attention gave them, (n, width) each → the block's output: projection, residual sum, MLP."""
    x = rows + block.ls_1(F.linear(mixed, block.attn.out_proj.weight, block.attn.out_proj.bias))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _compute_type(x: torch.Tensor) -> torch.dtype:
    """The type that a linear layer makes of x."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


def _as_is(function: Callable, dynamic: bool) -> Callable:
    return function


@cache
def compiled_function(function: Callable, dynamic: bool) -> Callable:
    """torch.compile of a function that many blocks share. dynamic: its numbers of rows differ from batch to batch, as
    texts' do, and one graph serves all; else, as for images, it is compiled for the numbers that it sees."""
    # A variant for each tower, for pooled rows, for passes with and without gradients, for autocast: more than the
    # default of 8, beyond which torch would silently run without compiling.
    config = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):  # the second is torch 2.6's
        if hasattr(config, name):
            setattr(config, name, max(getattr(config, name), _GRAPHS))
            break
    # Inside DistributedDataParallel torch would cut each graph at the buckets of gradients, and fail on functions with
    # gradients of their own. A graph is one block, so gradients are exchanged while others are computed as it is.
    config.optimize_ddp = False
    return torch.compile(function, dynamic=dynamic)
