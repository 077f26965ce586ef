"""Images + raw texts + synthetic captions → rec shards.

    python data2rec.py --input 'tars/{00000..01500}.tar' --captions captions.jsonl --output DIR/NAME --workers 8
    python data2rec.py --verify DIR/NAME [--decode]
    python data2rec.py --show 16 --output DIR/NAME
    python data2rec.py --merge --output DIR/NAME          # after --shard 1/4 … --shard 4/4 on four machines
    python data2rec.py --from DIR/NAME --scores gates.parquet --keep 'image_text_similarity > 0.2' --output DIR/CLEAN

Interrupted in any way, the same command resumes where it stopped. See docs/data.md.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from alip import command
from alip.build.images import MAX_PIXELS, MIN_SIDE, QUALITY, SHORT_SIDE, ImagePolicy
from alip.build.open_source import open_source
from alip.build.prepare import MISSING_CAPTION, MISSING_TEXT, SENTENCES, CaptionPolicy, Policy
from alip.build.sources import Fields
from alip.cluster.ray_engine import add_flags as add_engine_flags
from alip.cluster.ray_engine import check_flags as check_engine_flags
from alip.cluster.ray_engine import engine_of
from alip.data.manifest_schema import MOST_CAPTIONS
from alip.errors import UserError, run_command
from alip.remote.urls import local_path

_SEVERAL_FILES: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "FILE"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.CommandParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=command.DefaultsFormatter
    )
    for declare in (_task_flags, _output_flags, _input_flags, _selection_flags, _image_flags, _machine_flags):
        declare(parser)
    args = parser.parse_args()
    _check_task(args, parser)
    return args


_TASKS = {"input": "--input", "merge": "--merge", "source": "--from", "verify": "--verify", "show": "--show"}
# Flags of the tasks that read no input; those for running belong to all.
_FLAGS = {
    "merge": {"output", "overwrite", "scratch"},
    "verify": {"scratch", "decode"},
    "show": {"output", "scratch"},
    "source": {"output", "overwrite", "scratch", "samples_per_shard", "scores", "keep", "replace_text_where"}
    | {"captions", "captions_per_image", "caption_sentences", "rewrites"},  # refused with a reason of their own
}
_RUNNING = {"workers", "engine", "ray_address", "quiet"}


def _check_task(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """One task, and no flag that it would pass over."""
    tasks = [name for name in _TASKS if getattr(args, name) not in (None, False)]
    if len(tasks) > 1:
        raise UserError(f"{' and '.join(_TASKS[name] for name in tasks)} are different tasks: give one of them")
    if args.decode and tasks != ["verify"]:
        raise UserError("--decode belongs to --verify DIR/NAME")
    known = _FLAGS.get(tasks[0]) if tasks else None
    given = [name for name in vars(args) if getattr(args, name) != parser.get_default(name)]
    others = [name for name in given if known is not None and name not in known | _RUNNING | {tasks[0]}]
    if others:
        raise UserError(f"--{others[0].replace('_', '-')} means nothing with {_TASKS[tasks[0]]}: leave it out")


def _task_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what to do (one of)").add_argument
    add("--input", nargs="+", metavar="SRC", help="tars, tables, JSON, a folder; patterns with {00..99} and *")
    add("--merge", action="store_true", help="merge what --shard 1/N … N/N built into --output")
    add("--from", dest="source", metavar="DIR/NAME", help="select samples of a dataset by their gate scores")
    add("--verify", metavar="DIR/NAME", help="check framing, index, checksums and labels of a dataset")
    add(
        "--show",
        type=command.whole(1, 10_000),
        metavar="K",
        help="plot K samples of --output with their texts: NAME-samples.png",
    )


def _output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("where to").add_argument
    add("--output", metavar="DIR/NAME", help="the dataset: DIR/NAME.json, DIR/NAME-00000.rec …")
    add(
        "--samples-per-shard",
        type=command.whole(1, 10**9),
        default=20_000,
        help="a crash loses the work of at most one shard",
    )
    add("--scratch", metavar="DIR", help="for datasets at URLs: where their shards are built or copied")
    add(
        "--shuffle",
        type=command.seed,
        metavar="SEED",
        help="mix samples across all shards (needs the disk space twice)",
    )
    add("--shard", "--part", default="1/1", metavar="K/N", help="build shard K of N of the input, one on each machine")
    add("--overwrite", action="store_true", help="remove what is there under this name first")


def _input_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how to read the input").add_argument
    add("--source-type", choices=("webdataset", "table", "coco", "karpathy", "folder"), help="if not recognised")
    add("--captions", **_SEVERAL_FILES, help="captions by key: JSON lines, TSV, CSV, Parquet, or OFA's JSON list")
    add(
        "--captions-per-image",
        type=command.whole(1, MOST_CAPTIONS),
        default=1,
        metavar="K",
        help="store up to K captions of an image",
    )
    sentences = "store the sentences of captions: instead of them, or behind them (needs --captions-per-image)"
    add("--caption-sentences", choices=SENTENCES, help=sentences)
    add("--rewrites", metavar="FILE", help="raw texts as `python -m alip.caption --rewrite` rewrote them, by key")
    for what in ("key", "image", "text", "caption"):
        add(f"--{what}-field", metavar="NAME", help=f"JSON field or table column of the {what}, if not the usual one")
    add("--image-root", metavar="DIR", help="where relative image paths start (default: beside the table)")
    add("--splits", type=command.names, help="of Karpathy's JSON; '' for all (default: train,restval)")
    add("--missing-caption", choices=MISSING_CAPTION, default="skip", help="a sample without a caption")
    add("--missing-text", choices=MISSING_TEXT, default="skip", help="a sample without a raw text")


def _selection_flags(parser: argparse.ArgumentParser) -> None:
    title = "what to select: samples with --from (docs/gates.md), captions with --captions (docs/captions.md)"
    add = parser.add_argument_group(title).add_argument
    add("--scores", **_SEVERAL_FILES, help="table of `python -m alip.eval.gates` or `python -m alip.caption.score`")
    add("--keep", metavar="EXPR", help="keep those for which it is true, such as 'image_text_similarity > 0.2'")
    add("--replace-text-where", metavar="EXPR", help="with --from: replace the raw text by the caption where true")


def _image_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("images").add_argument
    add(
        "--short-side",
        type=command.whole(0, 65_500),
        default=SHORT_SIDE,
        help="larger images are shrunk to it; 0: never",
    )
    add("--quality", type=command.whole(1, 100), default=QUALITY, help="of JPEGs that have to be re-encoded, 1 to 100")
    add("--max-pixels", type=command.whole(1, 10**12), default=MAX_PIXELS, help="larger images are rejected undecoded")
    add("--min-side", type=command.whole(1, 65_500), default=MIN_SIDE, help="images with a shorter side are rejected")
    add("--any-name", action="store_true", help="accept images whose extension names another format")


def _machine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    add = group.add_argument
    add("--workers", type=command.workers, default=os.cpu_count(), help="processes; 0: only this one")
    add_engine_flags(group)
    add("--decode", action="store_true", help="with --verify: decode every image too")
    add("--quiet", action="store_true", help="no progress bar")


def main() -> int:
    """Does what the arguments ask for; the exit status."""
    args = arguments()
    check_engine_flags(args)
    if args.engine == "ray" and (args.verify or args.merge or args.source or args.show is not None):
        raise UserError("--engine ray builds from --input: leave it out with --verify, --show, --merge and --from")
    if args.verify:
        from alip.build.verify import verify

        options = {"decode": args.decode, "workers": args.workers, "scratch": args.scratch, "quiet": args.quiet}
        return verify(args.verify, **options)
    if not args.output:
        raise UserError("give --output DIR/NAME (or --verify DIR/NAME)")
    if args.show is not None:
        from alip.build.preview import show

        return show(args.output, args.show)
    if args.merge:
        from alip.build.merge import merge

        return merge(args.output, overwrite=args.overwrite)
    if args.source:
        return select(args)
    if args.replace_text_where is not None:
        raise UserError("--replace-text-where belongs to --from DIR/NAME, the dataset to select from")
    if args.scores and args.keep is None:
        raise UserError("--scores without --keep EXPR selects nothing: say what to keep")
    if not args.input:
        raise UserError("give --input SRC, or one of --merge, --verify, --show, --from")
    return build(args)


def select(args: argparse.Namespace) -> int:
    """Builds shards from some samples of a dataset."""
    from alip.build.select import select as select_samples

    for flag in ("captions", "rewrites", "caption_sentences"):
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} belongs to --input: shards have their texts already")
    if args.captions_per_image > 1:
        raise UserError("--captions-per-image belongs to --input: a selection keeps the captions of its dataset")
    if len(args.scores) != 1:
        raise UserError("--from needs --scores FILE, one of them: python -m alip.eval.gates --data DIR/NAME writes it")
    summary = select_samples(
        args.source,
        args.scores[0],
        args.output,
        keep=args.keep,
        replace_text_where=args.replace_text_where,
        samples_per_shard=args.samples_per_shard,
        overwrite=args.overwrite,
        scratch=args.scratch,
        quiet=args.quiet,
    )
    print(summary.text())
    return 0


def build(args: argparse.Namespace) -> int:
    """Builds shards from the input."""
    from alip.build import writer
    from alip.build.input_shard import InputShard
    from alip.build.joined_texts import TextFiles

    if args.caption_sentences and args.captions_per_image == 1:
        raise UserError("--caption-sentences stores several captions: give --captions-per-image K, such as 8")
    fields = Fields(args.key_field, args.image_field, args.text_field, args.caption_field)
    source = open_source(args.input, args.source_type, fields=fields, image_root=args.image_root, splits=args.splits)
    captions = CaptionPolicy(args.captions_per_image, args.caption_sentences)
    image = ImagePolicy(args.short_side, args.quality, args.max_pixels, args.min_side, args.any_name)
    summary = writer.build(
        source,
        args.output,
        policy=Policy(image, args.missing_caption, args.missing_text, captions),
        workers=args.workers,
        samples_per_shard=args.samples_per_shard,
        texts=TextFiles(tuple(map(local_path, args.captions)), args.keep, tuple(args.scores), args.rewrites),
        shuffle_seed=args.shuffle,
        input_shard=InputShard.parse(args.shard),
        overwrite=args.overwrite,
        scratch=args.scratch,
        engine=engine_of(args),
        quiet=args.quiet,
    )
    print(summary.text())
    return 1 if summary.broken else 0


if __name__ == "__main__":
    run_command(main)
