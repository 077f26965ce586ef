"""train.py's command line → checked values, and from them what each part of the trainer needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alip.data.shards import is_manifest
from alip.errors import UserError
from alip.model.overrides import INTERPOLATIONS
from alip.remote.urls import is_url
from alip.train import open_clip_flags, schedule
from alip.train.flags import Flag, Tag, create_parser
from alip.train.idle_flags import idle_flags
from alip.train.optimizer import ADAMW
from alip.train.plan import Interval
from alip.train.presets import PRESETS

FLAGS: dict[str, Flag] = create_parser()[1]
_SOURCES = (".tar", ".csv", ".tsv", ".json", ".jsonl", ".parquet")


def tagged(tag: Tag) -> list[str]:
    """The flags (by dest) with that tag."""
    return [flag.dest for flag in FLAGS.values() if flag.tag is tag]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags to values, checked; what a preset sets is a default that flags override. UserError for any mistake."""
    parser, _ = create_parser()
    chosen, _ = parser.parse_known_args(argv)
    if chosen.preset is not None:
        adamws_own = () if chosen.opt == "adamw" else ("beta1", "beta2", "cycle_beta1")
        parser.set_defaults(**{name: v for name, v in PRESETS[chosen.preset].items() if name not in adamws_own})
    args = parser.parse_args(argv)
    # Together, so that somebody with a command line for open_clip sees at once all that has to change.
    problems = [*open_clip_flags.answers(args), *_data_problems(args), *_run_problems(args), *_batch_problems(args)]
    if problems:
        raise UserError("; ".join(problems))
    _resolve_data(args)
    idle = idle_flags(chosen, args, {name: flag.default for name, flag in FLAGS.items()})
    if idle:
        raise UserError("; ".join(idle))
    _resolve_recipe(args)
    _resolve_images(args)
    _resolve_logging(args)
    _check(args)
    return args


def options(args: argparse.Namespace, part: str) -> dict[str, Any]:
    """{parameter: value} for a part of the trainer ("model", "loss", …), so that no part knows this object."""
    found = {}
    for flag in FLAGS.values():
        for name, parameter in flag.to:
            if name == part:
                value = getattr(args, flag.dest)
                found[parameter] = value if flag.convert is None else flag.convert(value)
    return found


def fingerprint_settings(args: argparse.Namespace) -> dict[str, Any]:
    """For create_fingerprint: what a checkpoint keeps of the flags."""
    return {
        **options(args, "layout"),
        "recipe": {name: getattr(args, name) for name in tagged(Tag.RECIPE)},
        "numerics": {name: getattr(args, name) for name in tagged(Tag.NUMERICS)},
    }


def parse_interval(text: str, unit: str) -> Interval:
    """ "500", "500steps" or "2epochs"; unit: what a bare number counts."""
    number = text
    for name in ("steps", "epochs"):
        if text.endswith(name):
            number, unit = text.removesuffix(name), name
    if not number.strip().isdecimal() or len(number) > 18:
        raise UserError(f"{text[:80]!r} is no interval: write 500steps or 2epochs")
    return Interval(int(number), unit)


def _run_problems(args: argparse.Namespace) -> list[str]:
    """Settles the run's folder; what is wrong with it."""
    if args.resume == "latest":
        args.resume = "auto"
    if args.output is None and args.name is None:
        return ["where is the run to be kept? give --output RUN, or --logs DIR --name NAME for DIR/NAME"]
    if args.output is None:
        args.output = str(Path(args.logs or "logs") / args.name)
    elif args.logs is not None or args.name is not None:
        return ["--output RUN is the same as --logs DIR --name NAME: give one of them"]
    return []


def _batch_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with the size of a step and of its parts."""
    if args.accum_freq > 1 and (args.batch_size == "auto" or args.global_batch_size is not None):
        return ["--accum-freq follows from --global-batch-size and --batch-size: leave one of them out"]
    if args.batch_size == "auto" and args.fsdp:
        return ["--batch-size auto does not know what a divided model needs: with --fsdp give a number"]
    return []


def _data_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with the data's flags; for the input of open_clip's trainer, how to make rec shards of it."""
    if args.dataset_type == "synthetic":
        if args.train_data or args.mismatch_column:
            return ["--dataset-type synthetic has neither --train-data nor a --mismatch-column"]
        return [] if args.train_num_samples else ["--dataset-type synthetic needs --train-num-samples N"]
    if not args.train_data:
        return ["what is there to train on? give --train-data DIR/NAME, the shards that data2rec.py wrote"]
    problems = []
    if "::" in args.train_data or (args.train_data.endswith(_SOURCES) and not _names_manifest(args.train_data)):
        problems.append(
            "--train-data: train.py reads rec shards; build them once with "
            f"`python data2rec.py --input '{args.train_data.replace('::', chr(39) + ' ' + chr(39))}' --output DIR/NAME`"
        )
    if args.dataset_type not in ("auto", "rec"):
        problems.append(f"--dataset-type {args.dataset_type}: only rec shards are read; leave it out")
    if args.train_num_samples is not None:
        problems.append("--train-num-samples: the manifest of the shards knows their number; leave it out")
    return problems


def _names_manifest(data: str) -> bool:
    """DIR/NAME.json stands for DIR/NAME; at a URL nothing is read at this point."""
    return data.endswith(".json") and (is_url(data) or is_manifest(Path(data)))


def _resolve_data(args: argparse.Namespace) -> None:
    """The order of the data, which depends on where it is."""
    at_url = args.train_data is not None and is_url(args.train_data)
    if args.data_order is None:
        args.data_order = "shards" if at_url else "blocks"
    if at_url and args.data_order != "shards":
        raise UserError(f"--data-order {args.data_order} reads single records from all shards: at a URL use shards")
    if at_url and args.cache_dir is None:
        raise UserError("--train-data at a URL needs --cache-dir DIR, a folder on a local disk, and its --cache-size")


def _resolve_recipe(args: argparse.Namespace) -> None:
    """Values that follow from other flags."""
    if args.opt == "adamw":
        for name, value in (("beta1", ADAMW["betas"][0]), ("beta2", ADAMW["betas"][1]), ("eps", ADAMW["eps"])):
            if getattr(args, name) is None:
                setattr(args, name, value)
    elif args.cycle_beta1:
        raise UserError(f"--cycle-beta1 moves AdamW's beta1: with --opt {args.opt} add --no-cycle-beta1")
    if args.epochs_cooldown is not None:
        if args.lr_scheduler != "const-cooldown":
            raise UserError("--epochs-cooldown belongs to --lr-scheduler const-cooldown")
        if args.steps is not None:
            raise UserError("--epochs-cooldown counts epochs, but the run's length is given by --steps: use --cooldown")
        if not 0 <= args.epochs_cooldown <= args.epochs:
            raise UserError(f"--epochs-cooldown {args.epochs_cooldown:g}: the run has {args.epochs} epochs")
        if args.cooldown is not None:
            raise UserError("--cooldown and --epochs-cooldown are the same in two units: leave one of them out")
        args.cooldown = args.epochs_cooldown / args.epochs
    elif args.cooldown is None:
        args.cooldown = 0.2


def _resolve_images(args: argparse.Namespace) -> None:
    """open_clip's lists of one, two or three numbers → what the model takes."""
    if args.force_image_size is not None:
        if len(set(args.force_image_size)) > 1 or len(args.force_image_size) > 2:
            raise UserError(f"--force-image-size {args.force_image_size}: images are square here, give one number")
        args.force_image_size = args.force_image_size[0]
    for name in ("image_mean", "image_std"):
        values = getattr(args, name)
        if values is not None:
            if len(values) not in (1, 3):
                raise UserError(f"--{name.replace('_', '-')} {values}: give three numbers, or one")
            setattr(args, name, values * 3 if len(values) == 1 else values)
    if args.image_interpolation == "random":
        raise UserError("--image-interpolation random: DALI resizes a batch in one way; choose bilinear or bicubic")
    if args.image_interpolation not in (None, *INTERPOLATIONS):
        raise UserError(f"--image-interpolation {args.image_interpolation}: choose bilinear or bicubic")


def _resolve_logging(args: argparse.Namespace) -> None:
    """Log, evaluations, checkpoints."""
    given_reports = args.report_to
    words = [word for word in args.report_to.replace(",", " ").split() if word != "none"]
    reports = {"tensorboard", "wandb"} if "all" in words else set(words)
    if reports - {"tensorboard", "wandb"}:
        raise UserError(f"--report-to {args.report_to}: choose tensorboard, wandb, all or none, separated by commas")
    if args.wandb is not None:
        reports.add("wandb")
        args.wandb_project_name = args.wandb
    args.report_to = ",".join(sorted(reports)) or "none"
    if "wandb" in reports and sys.modules.get("wandb") is None and find_spec("wandb") is None:
        flag = "--wandb" if args.wandb is not None else f"--report-to {given_reports}"
        raise UserError(f"{flag} needs the wandb package: pip install wandb, or leave it out")
    args.wandb = args.wandb_project_name if "wandb" in reports else None

    if args.delete_previous_checkpoint:
        if args.keep_epochs:
            raise UserError("--delete-previous-checkpoint keeps no epoch's: leave --save-frequency (--keep-epochs) out")
        if args.keep not in (None, 1):
            raise UserError("--delete-previous-checkpoint keeps the newest one only: leave --keep out")
        args.keep = 1
    elif args.keep is None:
        args.keep = 2
    args.save_every = parse_interval(args.save_every, "steps")
    given = {f"{n}epochs" for n in (args.val_frequency, args.zeroshot_frequency) if n is not None}
    given |= {args.eval_every} if args.eval_every is not None else set()
    if len(given) > 1:
        raise UserError("all evaluations run together: give one of --eval-every, --val-frequency, --zeroshot-frequency")
    args.eval_every = parse_interval(given.pop() if given else "1epochs", "epochs")


def _check(args: argparse.Namespace) -> None:
    for name in ("crop_area", "crop_aspect", "zoom"):
        low, high = getattr(args, name)
        if not 0 < low <= high:
            raise UserError(f"--{name.replace('_', '-')} {low} {high}: give two positive numbers, the smaller first")
    try:
        schedule.create_schedule(args.lr_scheduler, args.lr, 1000, args.warmup, args.cooldown)
    except ValueError as error:
        raise UserError(f"--warmup {args.warmup}: {error}") from error
    args.warmup = schedule.canonical_warmup(args.warmup)
    if args.lr_scheduler == "const-cooldown" and "." in args.warmup and float(args.warmup) + args.cooldown > 1:
        raise UserError(
            f"--warmup {args.warmup} and --cooldown {args.cooldown:g} overlap: both are fractions of all "
            "steps, 1 together at most"
        )
