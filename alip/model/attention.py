"""Attention over unpadded tokens (see `alip.varlen`): each row attends within its own sequence.

The sequences follow one another in one matrix. On CUDA devices one kernel takes them as they are. Elsewhere those of
similar length form a group, and only here, inside a group, are they padded to its longest: one copy moves the rows to
their padded positions, another one back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from alip.varlen import VarlenPlan

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None


def takes_window(kernel: Callable | None) -> bool:
    """Whether a `varlen_attn` is one that can be used here: torch 2.10's takes no window."""
    return kernel is not None and "window_size" in inspect.signature(kernel).parameters


if not takes_window(varlen_attn):
    varlen_attn = None

# On a CPU, plain matrix products beat the fused kernel for short sequences (2× in fp32, 6× in bf16).
PLAIN_ATTENTION_LENGTH = 256
_CAUSAL = (-1, 0)  # a window: how many tokens before and after its own each one attends to; -1: all


def choose_kernel(device: torch.device, dtype: torch.dtype, head_width: int, longest: int) -> str:
    """The one place where attention's kernel is chosen: "plain", "varlen" or "sdpa".

    plain: products written out, for short sequences on a CPU. varlen: one Flash Attention launch over unpadded tokens,
    on CUDA devices from compute capability 8.0 in fp16 and bf16. sdpa: torch's fused attention, group by group.
    """
    if device.type == "cpu":
        return "plain" if longest <= PLAIN_ATTENTION_LENGTH else "sdpa"
    fits = dtype in (torch.float16, torch.bfloat16) and head_width % 8 == 0 and head_width <= 256
    if device.type != "cuda" or varlen_attn is None or not fits:
        return "sdpa"
    return "varlen" if torch.cuda.get_device_capability(device) >= (8, 0) else "sdpa"


def self_attention(qkv: torch.Tensor, heads: int, plan: VarlenPlan, causal: bool) -> torch.Tensor:
    """Queries, keys and values (T, 3·width) of unpadded tokens → attention output of each row (T, width)."""
    kernel = choose_kernel(qkv.device, qkv.dtype, qkv.shape[1] // (3 * heads), plan.longest)
    if kernel == "plain":
        return _PlainAttention.apply(qkv, heads, plan, causal)
    if kernel == "varlen":
        return varlen_self(qkv, heads, plan.cumulative, plan.bound, causal)
    mixed = []
    padded = pad(qkv, plan)
    for part, (count, length) in zip(padded.split([count * length for count, length in plan.groups]), plan.groups):
        q, k, v = _by_head(part, 3, count, length, heads).unbind(0)
        # Padding comes after the real tokens, so the causal mask hides it from them.
        with _without_cudnn(q):
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        mixed.append(attended.transpose(1, 2).reshape(count * length, -1))
    mixed = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    return mixed if plan.padded_index is None else take_rows(mixed, plan.padded_index)


def pooled_attention(queries: torch.Tensor, kv: torch.Tensor, heads: int, plan: VarlenPlan) -> torch.Tensor:
    """One query (N, width) per sequence over the keys and values (T, 2·width) of its unpadded tokens → (N, width)."""
    head_width = queries.shape[1] // heads
    if choose_kernel(kv.device, kv.dtype, head_width, plan.longest) == "varlen":
        return varlen_pooled(queries, kv, heads, plan.cumulative, plan.bound)
    mixed = []
    parts = pad(kv, plan).split([count * length for count, length in plan.groups])
    by_group = zip(queries.split([n for n, _ in plan.groups]), parts, plan.masks, plan.groups)
    for q, part, mask, (count, length) in by_group:
        k, v = _by_head(part, 2, count, length, heads).unbind(0)
        q = q.view(count, heads, 1, -1)
        if choose_kernel(q.device, q.dtype, head_width, length) == "plain":
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            attended = scores.softmax(dim=-1) @ v
        else:
            with _without_cudnn(q):
                attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed.append(attended.reshape(count, -1))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def varlen_self(qkv: torch.Tensor, heads: int, cumulative: torch.Tensor, bound: int, causal: bool) -> torch.Tensor:
    """`self_attention` in one launch. cumulative, bound: of the plan; nothing here depends on a batch's lengths, so
    that a compiled graph of it serves all."""
    q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)
    window = _CAUSAL if causal else _whole(bound)
    mixed = varlen_attn(q, k, v, cumulative, cumulative, bound, bound, window_size=window)
    return mixed.reshape(len(qkv), -1)


def varlen_pooled(
    queries: torch.Tensor, kv: torch.Tensor, heads: int, cumulative: torch.Tensor, bound: int
) -> torch.Tensor:
    """`pooled_attention` in one launch."""
    k, v = kv.view(len(kv), 2, heads, -1).unbind(1)
    ones = torch.arange(len(queries) + 1, dtype=torch.int32, device=queries.device)
    q = queries.view(len(queries), heads, -1)
    return varlen_attn(q, k, v, ones, cumulative, 1, bound, window_size=_whole(bound)).reshape_as(queries)


def _whole(bound: int) -> tuple[int, int]:
    """The window that is all of a sequence of at most `bound` tokens. Not (-1, -1): for that torch 2.14 takes cuDNN on
    some GPUs and lengths, which builds a plan for each shape and shapes its log-sum-exps otherwise than a compiled
    graph is told."""
    return bound, bound


def _without_cudnn(x: torch.Tensor) -> AbstractContextManager:
    """cuDNN, which torch prefers on some devices, builds a plan for every new shape, and each group is one."""
    if x.device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def pad(x: torch.Tensor, plan: VarlenPlan) -> torch.Tensor:
    """Unpadded tokens (T, width) at their positions among the padded ones (S, width); zeros between."""
    if plan.padded_index is None:
        return x
    return x.new_zeros(plan.padded_rows, x.shape[1]).index_copy_(0, plan.padded_index, x)


def take_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows `index` (n,) of x (T, width) → (n, width); no row may be asked for twice."""
    return _TakeRows.apply(x, index)


def _by_head(rows: torch.Tensor, parts: int, count: int, length: int, heads: int) -> torch.Tensor:
    """A view of a group's padded rows (count·length, parts·heads·d) as (parts, count, heads, length, d)."""
    return rows.view(count, length, parts, heads, -1).permute(2, 0, 3, 1, 4)


class _PlainAttention(torch.autograd.Function):
    """Self-attention by plain batched products, for short sequences on a CPU: `self_attention`'s arguments.

    The gradient is written out: one copy sorts queries, keys and values by head, and one copy returns their gradients.
    Autograd's own path through views, splits and joins copies three times as much.
    """

    @staticmethod
    def forward(ctx, qkv, heads, plan, causal):
        width = qkv.shape[1] // 3
        scale = (width // heads) ** -0.5
        mixed = qkv.new_empty(plan.padded_rows, width)
        saved = []
        with torch.autocast("cpu", enabled=False):
            for rows, (count, length), out in _groups(plan, pad(qkv, plan), mixed):
                by_head = _by_head(rows, 3, count, length, heads).contiguous()
                q, k, v = by_head.view(3, count * heads, length, -1)
                scores = q.new_empty(count * heads, length, length)
                torch.baddbmm(scores, q, k.mT, beta=0, alpha=scale, out=scores)
                if causal:  # padding comes after the real tokens, so this hides it from them
                    scores.masked_fill_(torch.ones(length, length, dtype=torch.bool).triu_(1), -torch.inf)
                weights = scores.softmax(dim=-1)
                _by_head(out, 1, count, length, heads).copy_((weights @ v).view(1, count, heads, length, -1))
                saved += [by_head, weights]
        ctx.save_for_backward(*saved)
        ctx.heads, ctx.plan, ctx.scale = heads, plan, scale
        return mixed if plan.padded_index is None else mixed.index_select(0, plan.padded_index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        heads, plan, scale, saved = ctx.heads, ctx.plan, ctx.scale, ctx.saved_tensors
        qkv_grad = grad.new_empty(plan.padded_rows, 3 * grad.shape[1])
        with torch.autocast("cpu", enabled=False):
            for number, (rows, (count, length), out) in enumerate(_groups(plan, pad(grad, plan), qkv_grad)):
                by_head, weights = saved[2 * number : 2 * number + 2]
                q, k, v = by_head.view(3, count * heads, length, -1)
                mixed_grad = _by_head(rows, 1, count, length, heads).reshape(count * heads, length, -1)
                grads = torch.empty_like(by_head)
                q_grad, k_grad, v_grad = grads.view(3, count * heads, length, -1)
                torch.bmm(weights.mT, mixed_grad, out=v_grad)
                weights_grad = mixed_grad @ v.mT
                scores_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
                torch.baddbmm(q_grad, scores_grad, k, beta=0, alpha=scale, out=q_grad)
                torch.baddbmm(k_grad, scores_grad.mT, q, beta=0, alpha=scale, out=k_grad)
                _by_head(out, 3, count, length, heads).copy_(grads)
        return qkv_grad if plan.padded_index is None else qkv_grad.index_select(0, plan.padded_index), None, None, None


def _groups(plan: VarlenPlan, *matrices: torch.Tensor):
    """For each group: its part of the first matrix of padded rows, (count, length), and its part of the second."""
    sizes = [count * length for count, length in plan.groups]
    first, second = (matrix.split(sizes) for matrix in matrices)
    return zip(first, plan.groups, second)


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
