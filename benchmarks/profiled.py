"""What torch.profiler found, each microsecond counted once."""

from __future__ import annotations

from collections.abc import Iterable

from torch.autograd import DeviceType


def own_times(events: Iterable, on_gpu: bool) -> list[tuple[str, int, float]]:
    """(name, calls, microseconds) of each kernel, on a CPU of each operation, the dearest first.

    events: `key_averages()`. An operation's event repeats the time of the kernels that it launched, and a marked
    region's that of all inside, so neither counts on a GPU.
    """
    if on_gpu:
        kernels = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
        found = [(e.key, e.count, float(e.self_device_time_total)) for e in kernels]
    else:
        found = [(e.key, e.count, float(e.self_cpu_time_total)) for e in events]
    return sorted(found, key=lambda one: one[2], reverse=True)
