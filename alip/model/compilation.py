"""Whether the towers are compiled: decided once, from what was asked for and what the machine has."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from alip.errors import UserError

CHOICES = ("auto", "on", "off")


def resolve_compile(choice: str, device: torch.device) -> bool:
    """True to compile the towers. "auto": on a GPU, if torch's compiler can work there; never on a CPU.

    Raises UserError for "on" where it cannot work.
    """
    if choice == "off" or (choice == "auto" and device.type != "cuda"):
        return False
    missing = missing_compiler(device)
    if missing and choice == "on":
        raise UserError(f"--torchcompile on: {missing}; install it, or leave the flag out")
    return not missing


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks here, in words; None if it has all that it needs."""
    name = "CXX" if device.type == "cpu" else "CC"
    wanted = ("g++", "clang++") if device.type == "cpu" else ("gcc", "clang")
    if not any(shutil.which(one) for one in (os.environ.get(name), *wanted) if one):
        return f"no compiler found ({' or '.join(wanted)}, or ${name})"
    header = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    if not header.is_file():  # Triton's launcher and inductor's kernels are modules that are built here
        return f"Python's own headers are missing ({header}; a system's Python has them in a package python3-dev)"
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "this GPU is older than Triton supports (compute capability 7.0)"
    return None
