"""The number type that the towers compute in: one answer for training, evaluation and captioning.

The names are open_clip's. Here weights stay in fp32 in all of them, and autocast chooses the type of each operation;
so `bf16` and `fp16`, which in open_clip also store the weights in that type, are further names of `amp_bf16` and `amp`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from alip.errors import UserError

PRECISIONS = ("auto", "amp_bf16", "amp", "fp32")
ALIASES = {"amp_bfloat16": "amp_bf16", "bf16": "amp_bf16", "fp16": "amp"}
_TYPES = {"fp32": torch.float32, "amp_bf16": torch.bfloat16, "amp": torch.float16}


def canonical(name: str) -> str:
    """One of PRECISIONS, from it or from an alias. UserError for any other name."""
    if name.startswith("pure_"):
        raise UserError(
            f"--precision {name}: weights in 16 bits lose small optimizer steps, and are not supported; "
            f"amp{'_bf16' if 'bf16' in name else ''} computes in that type and keeps the weights in fp32"
        )
    found = ALIASES.get(name, name)
    if found not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}: choose one of {', '.join((*PRECISIONS, *ALIASES))}")
    return found


def resolve(name: str, device: torch.device) -> str:
    """ "amp_bf16", "amp" or "fp32". "auto" is bf16 where the hardware has it; else fp16 on a GPU, fp32 on a CPU."""
    found = canonical(name)
    if found != "auto":
        return found
    if device.type == "cuda":
        return "amp_bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "amp"
    return "amp_bf16" if cpu_has_bf16() else "fp32"


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The type that a precision computes matrix products in."""
    return _TYPES[resolve(name, device)]


def autocast(name: str, device: torch.device) -> contextlib.AbstractContextManager:
    """The context for the towers' forward pass. Gates, loss and rankings are computed outside of it, in fp32."""
    dtype = dtype_of(name, device)
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself (AVX512-BF16, AMX, Arm BF16); emulated it is slower than fp32."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: no cheap way to know
        return False
    return bool(set(text.split()) & {"avx512_bf16", "amx_bf16", "bf16"})
