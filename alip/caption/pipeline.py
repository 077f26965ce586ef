"""The command `python -m alip.caption`: arguments → source, captioner, store → one pass → merge and summary."""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from alip import distributed
from alip.build.folders import FolderSource
from alip.build.images import ImageError, decode_image
from alip.build.open_source import open_source
from alip.build.sources import ByteRange, Fields, Source
from alip.caption.captioners import Decoding
from alip.caption.choice import CaptionerChoice, open_captioner
from alip.caption.command_line import parse
from alip.caption.merging import merge_outputs
from alip.caption.preprocessing import Preprocessing, shrink
from alip.caption.run import Pass, RankShard, Tally
from alip.caption.store import CaptionStore, PartWriter
from alip.caption.summary import CaptionSummary, as_text, plot_pairs
from alip.distributed import World
from alip.errors import UserError

WAIT_MINUTES = 60.0 * 24 * 30  # ranks may finish hours apart; a rank that dies is noticed at once anyway


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 every image has a caption (or fewer failed than --allow-failures), 1 otherwise."""
    arguments = parse(argv)
    if arguments.merge:
        return merge_parts(arguments)
    choice = CaptionerChoice(
        name=arguments.captioner,
        prompt=arguments.prompt,
        decoding=Decoding(**{name: getattr(arguments, name) for name in Decoding.__dataclass_fields__}),
        precision=arguments.precision,
        options=dict(option.split("=", 1) for option in arguments.option),
    )
    source = open_source(
        arguments.input,
        arguments.source_type,
        fields=Fields(key=arguments.key_field, image=arguments.image_field),
        image_root=arguments.image_root,
        splits=tuple(arguments.splits.split(",")) if arguments.splits else (),
    )
    world = distributed.start(
        "cpu", timeout_minutes=WAIT_MINUTES
    )  # gloo: nothing but small messages goes between ranks
    try:
        return caption(source, choice, CaptionStore(arguments.output), world, arguments)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"the disk of {arguments.output} is full: free some space and run the command again, it resumes"
        ) from error
    finally:
        distributed.stop()


def caption(
    source: Source, choice: CaptionerChoice, store: CaptionStore, world: World, arguments: argparse.Namespace
) -> int:
    """One pass of all ranks over the source, the merge and the summary. Returns the exit status, on every rank."""
    cleaning = {"strip_lead": arguments.strip_lead, "collapse_repeats": not arguments.keep_repeats}
    shard = RankShard(arguments.shard.index * world.world_size + world.rank, arguments.shard.count * world.world_size)
    settings = choice.settings() | {"cleaning": cleaning, "shard": [arguments.shard.index + 1, arguments.shard.count]}
    device = distributed.pick_device(arguments.device, world.local_rank)
    captioner = open_captioner(choice, device)
    module_file = choice.source()[1] if choice.source()[0] == "file" else None
    metadata = describe_run(captioner, source, world)
    run = from_rank_0(lambda: store.begin_run(settings, metadata, arguments.restart), world)
    captions, failures = (PartWriter(path) for path in store.part_paths(run, world.rank))
    bar = Bar(world, arguments.limit or count_folder(source)) if world.is_main else None
    tally = Pass(
        captioner,
        Preprocessing.of(captioner, module_file, arguments.max_pixels),
        captions,
        failures,
        store.done(),
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        cleaning=cleaning,
        trust_keys=arguments.trust_keys,
        sampling_seed=arguments.seed if arguments.sample else None,
        figure_seed=arguments.seed,
        on_progress=bar,
    ).run(shard.samples(source, arguments.limit))
    if bar is not None:
        bar.close()
    tallies = distributed.gather_objects(tally, world)
    return from_rank_0(lambda: finish(store, run, tallies, arguments), world)


def finish(store: CaptionStore, run: int, tallies: list[Tally], arguments: argparse.Namespace) -> int:
    """Rank 0: merges the parts, writes the record and the figure, prints the summary. Returns the exit status."""
    total = Tally()
    for tally in tallies:
        total.add(tally)
    summary = CaptionSummary(arguments.seed, {key for _, key, _ in total.sampled})
    store.merge(run, summary.observe)
    result = summary.result()
    failed = sum(total.failed.values())
    status = judge(total.images, failed, total.unread, arguments.allow_failures)
    record = store.read_run()
    record["complete"] = status == 0
    record["counts"] = {
        "images": total.images,
        "captioned_now": total.captioned,
        "captioned_before": total.done,
        "failed": failed,
        "failed_by_reason": dict(total.failed.most_common()),
        "unread_files": total.unread,
        "captions_of_other_images": result["captions"] - total.captioned - total.done,
    }
    record["summary"] = result
    if total.sampled and result["captions"]:
        pairs = read_pairs(total, summary.captions_of)
        if pairs:
            title = (
                f"{store.output.name}: {len(pairs)} of {result['captions']:,} pairs, sampled with seed {arguments.seed}"
            )
            from alip.plot_style import plot_or_warn  # matplotlib takes a second to load

            plot_or_warn(lambda path: plot_pairs(pairs, path, title), store.figure)
    store.finish(record)
    report(store, record, arguments.allow_failures)
    return status


def judge(images: int, failed: int, unread: int, allowed: float) -> int:
    """0 if every file was read to its end and at most the allowed fraction of images has no caption, else 1."""
    return 0 if unread == 0 and failed <= allowed * images else 1


def report(store: CaptionStore, record: dict[str, Any], allowed: float) -> None:
    """Prints the record."""
    counts = record["counts"]
    print(as_text(record["summary"]))
    done = counts["captioned_now"] + counts["captioned_before"]
    line = f"{counts['images']:,} images: {done:,} have a caption"
    print(line + (f" ({counts['captioned_before']:,} of them from earlier runs)" if counts["captioned_before"] else ""))
    if counts["captions_of_other_images"] > 0:
        print(f"{counts['captions_of_other_images']:,} more captions are of images that this input does not have")
    if counts["failed"]:
        reasons = ", ".join(f"{times:,} {reason}" for reason, times in counts["failed_by_reason"].items())
        fraction = counts["failed"] / counts["images"]
        print(
            f"{counts['failed']:,} images ({fraction:.2%}) have none: {reasons}; each one is named in {store.failures}"
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
    print(f"captions: {store.output}   record: {store.run_file}", end="")
    print(f"   ten pairs: {store.figure}" if store.figure.exists() else "", flush=True)


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


def merge_parts(arguments: argparse.Namespace) -> int:
    """`--merge SHARD.jsonl …`: joins the outputs of several machines (--shard K/N) into one."""
    summary = CaptionSummary(arguments.seed)
    store = CaptionStore(arguments.output)
    record = merge_outputs([CaptionStore(path) for path in arguments.merge], store, summary.observe)
    record["summary"] = summary.result()
    counts = record["counts"]
    status = judge(counts["images"], counts["failed"], counts["unread_files"], arguments.allow_failures)
    record["complete"] = status == 0
    store.finish(record)
    report(store, record, arguments.allow_failures)
    return status


def from_rank_0(action: Any, world: World) -> Any:
    """Runs `action` on rank 0 and returns its result on every rank; its UserError ends every rank, printed once."""
    outcome: tuple[str, Any] = ("", None)
    if world.is_main:
        try:
            outcome = ("value", action())
        except UserError as error:
            outcome = ("error", str(error))
    status, value = distributed.broadcast_object(outcome, world)
    if status == "error":
        if world.is_main:
            raise UserError(value)
        sys.exit(2)
    return value


def describe_run(captioner: Any, source: Source, world: World) -> dict[str, Any]:
    """The captioner, the source and the versions, for the record."""
    versions = {"torch": torch.__version__}
    for package in ("alip", "transformers", "open_clip_torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "captioner": json.loads(json.dumps(getattr(captioner, "metadata", {}), default=str)),
        "versions": versions,
        "ranks": world.world_size,
        "source": {
            "type": source.source_type,
            "files": len(source.units),
            "first": str(Path(source.units[0]).absolute()),
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def count_folder(source: Source) -> int | None:
    """Number of images in a folder source; None for other sources, which report their own progress."""
    return source.count if isinstance(source, FolderSource) else None


class Bar:
    """Images/s of all ranks, fraction done, time left, failures. Called after each image with rank 0's tally.

    total: number of images, where it is known and the source does not report progress; else None.
    """

    def __init__(self, world: World, total: int | None = None) -> None:
        self.ranks, self.total = world.world_size, total
        self.started = time.monotonic()
        tty = sys.stderr.isatty()
        form = "{percentage:3.0f}% |{bar}| {desc}ETA {remaining}"
        self.bar = tqdm(total=1.0, bar_format=form, mininterval=0.5 if tty else 30.0, ncols=None if tty else 100)

    def __call__(self, tally: Tally, progress: float | None) -> None:
        speed = self.ranks * tally.captioned / max(time.monotonic() - self.started, 1e-3)
        counts = f"{tally.images:,} images, {speed:.1f} captions/s, {sum(tally.failed.values()):,} failed, "
        who = "" if self.ranks == 1 else f"rank 0 of {self.ranks} (speed of all): "
        self.bar.set_description_str(who + counts, refresh=False)
        if self.total:
            progress = min(1.0, tally.images * self.ranks / self.total)
        self.bar.update(max(0.0, (progress or 0.0) - self.bar.n))

    def close(self) -> None:
        """The end of a complete pass."""
        self.bar.update(1.0 - self.bar.n)
        self.bar.close()
