"""Pre-emption and Ctrl-C: the first signal requests a save, a second Ctrl-C ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from alip.distributed import World

# torchrun passes on the Ctrl-C that the terminal may have sent to its children already: one press, two signals.
_SAME_PRESS_S = 1.0


class StopRequest:
    """Turns SIGTERM and SIGINT into an answer to `agreed()`, the same on all ranks at the same step.

    Ranks receive a signal at different moments, but must stop after the same step. So at every step each rank's
    answer is exchanged over a small CPU group of its own, and waited for one step later: no GPU is involved, and
    the exchange has had a whole step to finish.
    """

    def __init__(self, world: World):
        self.name: str | None = None
        self._since = 0.0
        self._pending: tuple[torch.Tensor, dist.Work] | None = None
        self._group = None
        if world.is_distributed:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=world.timeout_minutes))
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}

    def agreed(self) -> bool:
        """Whether to save and leave now. Every rank calls it once per step."""
        if self._group is None:
            return self.name is not None
        answer = False
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            answer = bool(flag.item())
        flag = torch.tensor([self.name is not None], dtype=torch.int32)
        self._pending = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    def close(self) -> None:
        """Restores the previous signal handlers. (An exchange still under way ends by itself.)"""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.name is not None and number == signal.SIGINT and now - self._since > _SAME_PRESS_S:
            print("ended at once, without saving", file=sys.stderr, flush=True)
            os._exit(130)
        if self.name is None:
            self.name, self._since = signal.Signals(number).name, now
