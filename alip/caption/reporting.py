"""What a captioning run shows: progress, the summary, the figure's pairs, and the record of what was run."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from alip.build.folders import FolderSource
from alip.build.images import ImageError, decode_image
from alip.build.sources import ByteRange, Source
from alip.caption.preprocessing import shrink
from alip.caption.run import Tally
from alip.caption.store import CaptionStore
from alip.caption.summary import as_text
from alip.distributed import World
from alip.remote.urls import is_url, redact


def judge(images: int, failed: int, unread: int, allowed: float) -> int:
    """0 if every file was read to its end and at most the allowed fraction of images has no caption, else 1."""
    return 0 if unread == 0 and failed <= allowed * images else 1


def report(store: CaptionStore, record: dict[str, Any], allowed: float) -> None:
    """Prints the record of a captioning run."""
    counts = record["counts"]
    print(as_text(record["summary"]))
    if record.get("costs"):
        print(costs_as_text(record["costs"]))
    field = "rewritten text" if record["settings"].get("rewrite") else "caption"
    what = "raw texts" if record["settings"].get("rewrite") else "images"
    done = counts["captioned_now"] + counts["captioned_before"]
    line = f"{counts['images']:,} {what}: {done:,} have a {field}"
    print(line + (f" ({counts['captioned_before']:,} of them from earlier runs)" if counts["captioned_before"] else ""))
    if counts["captions_of_other_images"] > 0:
        print(f"{counts['captions_of_other_images']:,} more {field}s are of {what} that this input does not have")
    if counts["failed"]:
        reasons = ", ".join(f"{times:,} {reason}" for reason, times in counts["failed_by_reason"].items())
        fraction = counts["failed"] / counts["images"]
        print(
            f"{counts['failed']:,} {what} ({fraction:.2%}) have none: {reasons}; each one is named in {store.failures}"
        )
        if counts["unread_files"]:
            print(
                f"{counts['unread_files']} input files are damaged or cut short, so how many of their images are "
                f"missing is unknown: replace those that {store.failures} lists as broken-input, and run again"
            )
        elif record["complete"]:
            print(f"that is within --allow-failures {allowed:g}")
        else:
            print(
                f"exit status 1, since --allow-failures is {allowed:g}: fix them and run again, or allow this fraction"
            )
    print(f"{field}s: {store.output}   record: {store.run_file}", end="")
    print(f"   ten pairs: {store.figure}" if store.figure.exists() else "", flush=True)


def costs_as_text(costs: dict[str, dict[str, float]]) -> str:
    """One line of what a server was asked for, over all runs."""
    total: dict[str, float] = {}
    for run in costs.values():
        for name, value in run.items():
            total[name] = total.get(name, 0) + value
    line = f"{total.get('requests', 0):,.0f} requests ({total.get('retries', 0):,.0f} repeated): "
    if total.get("tokens_in") or total.get("tokens_out"):
        line += f"{total.get('tokens_in', 0):,.0f} tokens in, {total.get('tokens_out', 0):,.0f} out"
    else:
        line += "its replies name no tokens, so neither these nor the price are known"
    if total.get("cost"):
        line += f", at the given prices {total['cost']:,.4g}"
    if total.get("cut_off"):
        line += f"; {total['cut_off']:,.0f} answers ended at --max-new-tokens"
    return line


def read_pairs(total: Tally, captions_of: dict[str, str], most: int = 10) -> list[tuple[Image.Image, str, str]]:
    """The sampled images, read again, with their captions; (image, key, caption) each."""
    pairs: list[tuple[Image.Image, str, str]] = []
    for _, key, image_data in sorted(total.sampled, key=lambda entry: entry[:2], reverse=True):
        if key not in captions_of or len(pairs) == most:
            continue
        try:
            data = image_data.read() if isinstance(image_data, ByteRange) else image_data
            image = shrink(decode_image(data, short_side=300))
        except (OSError, ValueError, ImageError):  # its failure has its own line; the figure shows the next one
            continue
        image.thumbnail((360, 360))
        pairs.append((image, key, captions_of[key]))
    return pairs


def describe_run(captioner: dict[str, Any], source: Source, world: World) -> dict[str, Any]:
    """The captioner's metadata, the source and the versions, for the record."""
    versions = {"torch": torch.__version__}
    for package in ("alip", "transformers", "open_clip_torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    first = source.units[0]
    return {
        "captioner": json.loads(json.dumps(captioner, default=str)),
        "versions": versions,
        "ranks": world.world_size,
        "source": {
            "type": source.source_type,
            "files": len(source.units),
            "first": redact(first) if is_url(first) else str(Path(first).absolute()),
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def count_folder(source: Source) -> int | None:
    """Number of images in a folder source; None for other sources, which report their own progress."""
    return source.count if isinstance(source, FolderSource) else None


class Bar:
    """Images/s of all ranks, fraction done, time left, failures. Called after each image with rank 0's tally. A context
    manager: its line ends with it, before the line of an error.

    total: number of images, where it is known and the source does not report progress; else None.
    """

    def __init__(self, world: World, total: int | None = None) -> None:
        self.ranks, self.total = world.world_size, total
        self.started = time.monotonic()
        tty = sys.stderr.isatty()
        form = "{percentage:3.0f}% |{bar}| {desc}ETA {remaining}"
        pace = {"mininterval": 0.5 if tty else 30.0, "delay": 0.1}  # a mistake that is found at once has its own line
        self.bar = tqdm(total=1.0, bar_format=form, ncols=None if tty else 100, **pace)

    def __call__(self, tally: Tally, progress: float | None) -> None:
        speed = self.ranks * tally.captioned / max(time.monotonic() - self.started, 1e-3)
        counts = f"{tally.images:,} images, {speed:.1f} captions/s, {sum(tally.failed.values()):,} failed, "
        who = "" if self.ranks == 1 else f"rank 0 of {self.ranks} (speed of all): "
        self.bar.set_description_str(who + counts, refresh=False)
        if self.total and progress != 1.0:
            progress = min(1.0, tally.images * self.ranks / self.total)
        self.bar.update(max(0.0, (progress or 0.0) - self.bar.n))

    def finish(self, tally: Tally) -> None:
        """The end of a complete pass, with its last batch."""
        self(tally, 1.0)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()
