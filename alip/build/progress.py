"""The progress bar of a build."""

from __future__ import annotations

from collections import Counter

from tqdm import tqdm

from alip.build.journal import RejectsFile


class ProgressBar:
    """Images per second, time left and rejects so far. What can be known is the fraction of the input that was read.

    counts: of the build, with `samples`; rejects: its rejects. Both are read, never changed.
    """

    def __init__(self, counts: Counter, rejects: RejectsFile, quiet: bool):
        self.counts, self.rejects = counts, rejects
        self.before = counts["samples"] + rejects.count
        form = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
        # Delayed: a mistake that is found at once is the only line.
        self.bar = tqdm(total=1.0, bar_format=form, disable=quiet, mininterval=0.5, delay=0.1)
        self.first: float | None = None

    def show(self, progress: float | None) -> None:
        """One more sample is done. progress: fraction of the input read, None where nobody knows."""
        if self.bar.disable or self._done() % 32:
            return
        if progress is not None:
            if self.first is None:  # a resumed build starts further in: the time left is for the rest
                self.first = self.bar.initial = progress
            self.bar.n = progress
        self._describe()
        self.bar.update(0)

    def _done(self) -> int:
        return self.counts["samples"] + self.rejects.count - self.before

    def _describe(self) -> None:
        rate = self._done() / max(1e-3, self.bar.format_dict["elapsed"])
        accepted = self.counts["samples"]
        self.bar.set_postfix_str(f" {accepted:,} images, {rate:.0f}/s, {self.rejects.count:,} rejects", refresh=False)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None and not self.bar.disable:
            self.bar.n = 1.0
            self._describe()  # the last ones, too
        self.bar.close()
