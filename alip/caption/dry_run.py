"""`--dry-run N`: captions the first images and shows them, with what they take; nothing is written."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from alip.build.sources import Sample, Source
from alip.caption.jobs import Job
from alip.caption.reporting import costs_as_text, count_folder
from alip.caption.run import Output, Pass, RankShard


class Screen:
    """Takes a pass's lines and prints them."""

    def __init__(self) -> None:
        self.lines = 0

    def write(self, line: dict[str, Any]) -> None:
        """Shows one result or failure."""
        self.lines += 1
        texts = line.get("captions") or [line.get("caption") or line.get("rewrite")]
        if "reason" in line:
            texts = [f"({line['reason']}: {line['detail']})"]
        for text in texts:
            print(f"{line['key']}\t{text}", flush=True)

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Nothing is open."""


class _Nowhere(Screen):
    def write(self, line: dict[str, Any]) -> None:
        """What it has cost is shown at the end."""


def dry_run(job: Job, source: Source, arguments: argparse.Namespace) -> int:
    """The first images of the source through the whole pipeline. Returns 0 if each of them got its text."""
    prompt = job.metadata.get("prompt")
    print(f"dry run of {arguments.captioner}: {'no prompt' if prompt is None else f'prompt {prompt!r}'}")
    screen, shown, started = Screen(), arguments.dry_run, time.monotonic()
    output = Output(screen, screen, lambda sample: None, job.usage, _Nowhere() if job.usage else None)
    samples = islice(_distinct(RankShard().samples(source, arguments.limit, job.by_image), job), shown)
    tally = Pass(
        job.work,
        job.preprocessing,
        output,
        batch_size=min(arguments.batch_size, shown),
        workers=0,
        content=job.content,
        identity=job.identity,
    ).run(samples)
    seconds = time.monotonic() - started
    print(f"{tally.captioned} of {tally.images} in {seconds:.1f} s, the start of the model or server included")
    if job.usage and tally.images:
        spent = job.usage()
        print(costs_as_text({"": spent}))
        if spent.get("cost"):
            count = count_folder(source) or 1000
            print(f"at this rate {count:,} cost about {spent['cost'] / tally.images * count:,.4g}")
    return 0 if tally.images == tally.captioned else 1


def _distinct(samples: Iterator[Sample], job: Job) -> Iterator[Sample]:
    """Each image once, so that N of them are N images."""
    seen = set()
    for sample in samples:
        if (name := job.identity(sample)) not in seen:
            seen.add(name)
            yield sample
