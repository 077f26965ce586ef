"""Memory of a process that computes on a CPU."""

from __future__ import annotations

import ctypes
import os


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory in the process for the next step or batch; True if this C library can.

    A step allocates and frees the same gigabytes as the one before it. By default glibc returns large buffers to the
    kernel, which gives them back as new, zeroed pages: up to a tenth of a ViT-B/32's step, see
    benchmarks/notes/step.md. The peak of memory is the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:  # musl, macOS
        return False
    mmap_max, top_pad, trim_threshold = -4, -2, -1  # M_… of malloc.h
    return all(mallopt(*setting) for setting in ((mmap_max, 0), (top_pad, 64 << 20), (trim_threshold, -1)))
