"""What every worker process does first: leave Ctrl-C to its parent, stay one thread, end when its parent ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable


def start_worker(parent: int) -> None:
    """The first call in a worker process. parent: the id of the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes are the parallelism; read when torch is imported
    if "torch" in sys.modules:  # forked with it
        sys.modules["torch"].set_num_threads(1)
    end_with_parent(parent)


def end_with_parent(parent: int, exit_now: Callable[[int], None] = os._exit) -> None:
    """Ends this process soon after its parent is gone: a parent that was killed (-9) cannot end its workers, and they
    would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        exit_now(1)

    threading.Thread(target=watch, daemon=True).start()
