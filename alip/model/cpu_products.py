"""Faster products in fp32 on AMD processors: linear layers through oneDNN where MKL would leave AVX-512 unused.

torch takes MKL for products in fp32. On AMD's processors MKL runs its AVX2 kernels, on half of the width of what has
AVX-512; oneDNN, which is in torch too, runs AVX-512 there. Both compute in fp32: only the order of sums differs, so the
last bits do. Training does not use this: its losses are the same to the last bit from version to version.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def onednn_linears(device: torch.device) -> contextlib.AbstractContextManager:
    """A context for passes without gradients, in this thread: linear layers in fp32 on a CPU where oneDNN is faster."""
    return _OneDNNLinears() if device.type == "cpu" and onednn_is_faster() else contextlib.nullcontext()


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
        if func is F.linear and _fits(*args, **kwargs):
            return _linear(*args, **kwargs)
        return func(*args, **kwargs)


def _fits(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    tensors = [one for one in (input, weight, bias) if one is not None]
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and all(type(one) in (torch.Tensor, torch.nn.Parameter) and one.is_cpu for one in tensors)
        and all(one.dtype == torch.float32 and one.layout == torch.strided for one in tensors)
        and input.dim() >= 2
        and weight.dim() == 2
        and input.numel() > 0
    )


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(input.contiguous(), weight.contiguous(), bias, "none", [], "")
