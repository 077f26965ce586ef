"""The progress bar of a build says what is true, at its end too."""

from collections import Counter
from types import SimpleNamespace

from alip.build.progress import ProgressBar


def test_the_last_line_counts_all_images():
    counts: Counter = Counter(samples=0)
    with ProgressBar(counts, SimpleNamespace(count=0), quiet=False) as progress:
        for number in range(1, 41):
            counts["samples"] = number
            progress.show(number / 60)
        assert "32 images" in progress.bar.postfix and progress.bar.n == 32 / 60
    assert "40 images" in progress.bar.postfix and progress.bar.n == 1
