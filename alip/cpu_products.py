"""Faster products in fp32 on AMD processors: through oneDNN where MKL would leave AVX-512 unused.

torch takes MKL for products in fp32. On AMD's processors MKL runs its AVX2 kernels, on half of the width of what has
AVX-512; oneDNN, which is in torch too, runs AVX-512 there, twice as fast. Both compute in fp32: only the order of sums
differs, so the last bits do. On other processors, in other types and for small products nothing changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Multiplications below which a product costs more than by MKL: a call is 12 µs of oneDNN's, 3 of MKL's.
SMALLEST = 1 << 22


def onednn_linears(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in this thread: linear layers in fp32 on a CPU, and their gradients, where oneDNN is faster.

    Not for models that are compiled, nor for gradient checkpointing: torch leaves the context while it handles
    `backward`, so layers would be repeated outside it. Nor for gradients of gradients.
    """
    return _OneDNNLinears() if device.type == "cpu" and onednn_is_faster() else contextlib.nullcontext()


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a (n, k) · b (k, m) → out (n, m), by oneDNN where it is faster. Not differentiable."""
    if onednn_is_faster() and _fits(a, b.T):
        out.copy_(_product(a, b.T))
    else:
        torch.mm(a, b, out=out)


def multiply_add(a: Tensor, b: Tensor, total: Tensor, buffer: Tensor) -> None:
    """total (n, m) += a (n, k) · b (k, m), by oneDNN where it is faster. Not differentiable.

    buffer: n · k contiguous numbers, which may be overwritten.
    """
    if onednn_is_faster() and _fits(a, b.T):
        if not a.is_contiguous():  # oneDNN would take memory of its own for this
            a = buffer.view(a.shape).copy_(a)
        total.add_(_product(a, b.T))
    else:
        total.addmm_(a, b)


@cache
def onednn_is_faster() -> bool:
    """True on an AMD processor with AVX-512, if this torch has oneDNN's linear layer."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return {"AuthenticAMD", "avx512f"} <= set(text.split())


class _OneDNNLinears(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not torch.compiler.is_compiling() and _fits(*args, **kwargs):
            return _linear(*args, **kwargs)
        return func(*args, **kwargs)


def _fits(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    tensors = [one for one in (input, weight, bias) if one is not None]
    return (
        all(type(one) in (Tensor, torch.nn.Parameter) and one.is_cpu for one in tensors)
        and all(one.dtype == torch.float32 and one.layout == torch.strided for one in tensors)
        and input.dim() >= 2
        and weight.dim() == 2
        and input.numel() * weight.shape[0] >= SMALLEST
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
    )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (input, weight, bias)):
        return _Linear.apply(input, weight, bias)
    return _product(input, weight, bias)


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input (…, k) · weightᵀ (m, k) + bias (m,) → (…, m)."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """A linear layer whose three products are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input.contiguous(), weight.contiguous(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        grad = grad.contiguous()
        rows = grad.view(-1, grad.shape[-1])
        for_input, for_weight, for_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.T.contiguous()) if for_input else None,
            _product(rows.T.contiguous(), input.reshape(-1, input.shape[-1]).T.contiguous()) if for_weight else None,
            rows.sum(dim=0) if for_bias else None,
        )
