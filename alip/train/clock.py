"""Where the time goes between two log lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class StepClock:
    """Steps and seconds of training since the last reading; evaluation, logging and saving are not training.

    steps: optimizer steps since then. waited: seconds that were spent waiting for the data loader.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Starts from zero now."""
        self.steps, self.waited, self._start = 0, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training since the start, never 0."""
        return max(time.perf_counter() - self._start, 1e-9)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What is inside waits for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is inside is not training."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start
