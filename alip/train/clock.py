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
        self._earlier = (0, 0.0)  # steps and seconds before the last restart
        self.steps, self._start = 0, time.perf_counter()
        self.restart()

    def restart(self) -> None:
        """Starts from zero now."""
        steps, seconds = self._earlier
        # The first steps compile and fill caches: without a step there is no time to keep.
        self._earlier = (steps + self.steps, seconds + self.seconds) if self.steps else (steps, seconds)
        self.steps, self.waited, self._start = 0, 0.0, time.perf_counter()

    @property
    def seconds_per_step(self) -> float:
        """Over all steps of this process so far."""
        steps, seconds = self._earlier
        return (seconds + self.seconds) / max(steps + self.steps, 1)

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
