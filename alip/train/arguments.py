"""The flags of train.py, their defaults, and the two recipes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from alip.errors import UserError
from alip.model.precision import canonical
from alip.train import schedule
from alip.train.plan import Interval

# The recipe of the paper's YFCC15M runs, ViT-B/32, global batch 4096 (set by --batch-size x ranks x --accum-freq).
_PAPER = {
    "epochs": 32,
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.98,
    "wd": 0.2,
    "decay_all": False,
    "grad_clip_norm": 1.0,
    "lr_scheduler": "one-cycle",
    "warmup": "0.1",
    "cycle_beta1": False,
    "gamma_sample": 2.0,
    "gamma_pair": 2.0,
    "history_momentum": 0.99,
    "history_init": 1.0,
    "crop_area": [0.7, 1.0],
    "crop_aspect": [0.8, 1.25],
    "flip": 0.5,
}
PRESETS: dict[str, dict[str, Any]] = {
    "alip-paper": _PAPER,
    # What the released code did beside the paper: everything decayed; OneCycleLR put its own beta1 (0.95 to 0.85)
    # in force; and the gradient that was clipped at 1 was 1/16 of the true one (16 ranks, gathered features without
    # gradient), which is clipping the true one at 16. AdamW itself does not see the factor.
    "alip-released": {**_PAPER, "decay_all": True, "cycle_beta1": True, "grad_clip_norm": 16.0},
}

# Flags that decide what is learned: a resume with another value of one is another run.
RECIPE = (
    *("epochs", "steps", "lr", "beta1", "beta2", "eps", "wd", "decay_all", "lr_scheduler", "warmup", "cooldown"),
    *("cycle_beta1", "grad_clip_norm", "logit_scale_max", "ema", "seed", "gamma_sample", "gamma_pair"),
    *("history_momentum", "history_init", "no_sample_weight", "no_text_weight", "no_caption_weight", "crop_area"),
    *("crop_aspect", "flip", "rotation", "shift", "zoom", "brightness", "contrast", "force_patch_dropout"),
    *("lock_image", "lock_text", "force_quick_gelu"),
)
# Flags that change rounding only.
NUMERICS = ("precision", "reader", "deterministic", "grad_checkpointing", "torchcompile", "loss_chunk_size")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags to values, checked; what a preset sets is a default that flags override."""
    parser = create_parser()
    chosen, _ = parser.parse_known_args(argv)
    if chosen.preset is not None:
        parser.set_defaults(**PRESETS[chosen.preset])
    args = parser.parse_args(argv)
    _check(args)
    return args


# What each part takes from the arguments, by its own parameters' names: train.py hands these on, so that no part
# below it knows this object.


def of_model(args: argparse.Namespace) -> dict[str, Any]:
    """For alip.model.create_model."""
    names = ("pretrained", "grad_checkpointing", "lock_image", "lock_text")
    return {name: getattr(args, name) for name in names} | {
        "patch_dropout": args.force_patch_dropout,
        "quick_gelu": args.force_quick_gelu,
        "compile": args.torchcompile,
    }


def of_loss(args: argparse.Namespace) -> dict[str, Any]:
    """For AdaptiveContrastiveLoss. It need not check for NaN: the step does, without waiting for the device."""
    return {
        "gamma_sample": args.gamma_sample,
        "gamma_pair": args.gamma_pair,
        "history_momentum": args.history_momentum,
        "history_init": args.history_init,
        "use_sample_weight": not args.no_sample_weight,
        "use_text_weight": not args.no_text_weight,
        "use_caption_weight": not args.no_caption_weight,
        "chunk_size": args.loss_chunk_size,
        "check_finite": False,
        "even_batches": True,
    }


def of_optimizer(args: argparse.Namespace) -> dict[str, Any]:
    """For create_optimizer."""
    return {
        "lr": args.lr,
        "betas": (args.beta1, args.beta2),
        "eps": args.eps,
        "weight_decay": args.wd,
        "decay_all": args.decay_all,
    }


def of_augmentation(args: argparse.Namespace) -> dict[str, Any]:
    """For alip.data.loader.Augmentation."""
    return {
        "area": tuple(args.crop_area),
        "aspect": tuple(args.crop_aspect),
        "flip": args.flip,
        "rotation": args.rotation,
        "shift": args.shift,
        "zoom": tuple(args.zoom),
        "brightness": args.brightness,
        "contrast": args.contrast,
    }


def of_loader(args: argparse.Namespace, model) -> dict[str, Any]:
    """For create_loader; size, mean and standard deviation of the pictures are the model's."""
    pictures = model.config["preprocess_cfg"]
    return {
        "image_size": model.image_size,
        "mean": pictures["mean"],
        "std": pictures["std"],
        "seed": args.seed,
        "threads": args.workers,
        "reader": args.reader,
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
    }


def of_plan(args: argparse.Namespace) -> dict[str, Any]:
    """For create_plan."""
    names = ("batch_size", "accum_freq", "epochs", "steps", "log_every", "save_every", "eval_every", "nonfinite_limit")
    return {name: getattr(args, name) for name in names}


def of_evaluations(args: argparse.Namespace) -> dict[str, Any]:
    """For create_evaluations."""
    return {
        "retrieval": args.eval_retrieval,
        "zeroshot": args.eval_zeroshot,
        "data_root": args.data_root,
        "batch_size": args.eval_batch_size,
        "workers": args.workers,
        "precision": args.precision,
    }


def of_identity(args: argparse.Namespace) -> dict[str, Any]:
    """For create_identity."""
    return {
        "batch_size": args.batch_size,
        "accum_freq": args.accum_freq,
        "recipe": {name: getattr(args, name) for name in RECIPE},
        "numerics": {name: getattr(args, name) for name in NUMERICS},
    }


def of_resume(args: argparse.Namespace) -> dict[str, Any]:
    """For open_run."""
    names = ("resume", "seed", "keep", "wandb")
    return {name: getattr(args, name) for name in names} | {"force": args.resume_force}


def create_parser() -> argparse.ArgumentParser:
    """train.py's parser."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Trains a model with ALIP on rec shards. One process, or many under torchrun.",
        allow_abbrev=False,
    )
    _run_flags(parser.add_argument_group("run"))
    _model_flags(parser.add_argument_group("model"))
    _recipe_flags(parser.add_argument_group("optimisation"))
    _gate_flags(parser.add_argument_group("gates"))
    _data_flags(parser.add_argument_group("data"))
    _machine_flags(parser.add_argument_group("machine"))
    _watch_flags(parser.add_argument_group("watching"))
    return parser


def _run_flags(group) -> None:
    add = group.add_argument
    add("--train-data", required=True, metavar="DIR/NAME", help="shards, as data2rec.py wrote them, or released ones")
    add("--output", required=True, metavar="RUN", help="run folder: settings, metrics, checkpoints")
    add("--preset", choices=sorted(PRESETS), help="a whole recipe; other flags override its parts")
    add("--resume", metavar="auto|PATH", help="auto: from --output's newest checkpoint, if any; or from this one")
    add("--resume-force", action="store_true", help="resume though data, model or recipe differ")
    add("--batch-size", type=_positive, default=256, help="triplets per rank and micro-batch (default 256)")
    add("--accum-freq", type=_positive, default=1, help="micro-batches per update, with shared negatives (default 1)")
    add("--epochs", type=_positive, default=_PAPER["epochs"], help="passes over the data (default 32)")
    add("--steps", type=_positive, help="updates in all; overrides --epochs")
    add("--seed", type=int, default=0)
    add("--deterministic", action="store_true", help="deterministic kernels only (slower on a GPU)")


def _model_flags(group) -> None:
    add = group.add_argument
    add("--model", default="ViT-B-32", help="open_clip name or JSON file (default ViT-B-32)")
    add("--pretrained", metavar="PATH|TAG", help="start from these weights")
    add("--grad-checkpointing", action="store_true", help="less memory, a third more work")
    add("--force-patch-dropout", "--patch-dropout", type=float, help="share of image patches left out in training")
    add("--lock-image", action="store_true", help="keep the image tower as it is")
    add("--lock-text", action="store_true", help="keep the text tower as it is")
    add("--force-quick-gelu", "--quick-gelu", action="store_true", help="OpenAI's approximate GELU")
    add("--torchcompile", "--compile", action="store_true", help="torch.compile the towers")


def _recipe_flags(group) -> None:
    add = group.add_argument
    add("--lr", type=float, default=_PAPER["lr"], help="highest learning rate (default 1e-3)")
    add("--beta1", type=float, default=_PAPER["beta1"])
    add("--beta2", type=float, default=_PAPER["beta2"])
    add("--eps", type=float, default=1e-6)
    add("--wd", "--weight-decay", type=float, default=_PAPER["wd"])
    add("--decay-all", action=argparse.BooleanOptionalAction, default=False, help="decay biases, norms, … too")
    add("--lr-scheduler", "--schedule", choices=schedule.NAMES, default=_PAPER["lr_scheduler"])
    add("--warmup", default=_PAPER["warmup"], help="share of all updates (0.1) or their number (500); default 0.1")
    add("--cooldown", type=float, default=0.2, help="share of all updates, for const-cooldown (default 0.2)")
    add("--cycle-beta1", action=argparse.BooleanOptionalAction, default=False, help="one-cycle moves beta1 too")
    add(
        "--grad-clip-norm",
        "--grad-clip",
        type=float,
        default=_PAPER["grad_clip_norm"],
        help="largest gradient norm, 0: none (default 1)",
    )
    add("--logit-scale-max", type=float, default=100.0, help="upper end of the logit scale (default 100)")
    add("--ema", type=float, default=0.0, metavar="DECAY", help="keep averaged weights too, e.g. 0.9999; 0: none")
    add("--nonfinite-limit", type=_positive, default=10, help="give up after so many bad updates in a row (10)")


def _gate_flags(group) -> None:
    add = group.add_argument
    add("--gamma-sample", type=float, default=_PAPER["gamma_sample"])
    add("--gamma-pair", type=float, default=_PAPER["gamma_pair"])
    add(
        "--history-momentum",
        type=float,
        default=_PAPER["history_momentum"],
        help="of the gates' history (default 0.99)",
    )
    add("--history-init", type=_similarity, default=1.0, metavar="X|first-batch", help="history's start (default 1)")
    add("--no-sample-weight", action="store_true", help="W^s = 1")
    add("--no-text-weight", action="store_true", help="W^t = 1")
    add("--no-caption-weight", action="store_true", help="W^c = 1")
    add("--loss-chunk-size", type=_positive, help="rows of logits at a time; default: chosen by the device")
    add(
        "--mismatch-column",
        metavar="COLUMN",
        help="metadata column, true where the raw text does not match the image: reports the gates' AUC per epoch",
    )


def _data_flags(group) -> None:
    add = group.add_argument
    add("--crop-area", type=float, nargs=2, default=_PAPER["crop_area"], metavar=("LO", "HI"))
    add("--crop-aspect", type=float, nargs=2, default=_PAPER["crop_aspect"], metavar=("LO", "HI"))
    add("--flip", type=float, default=_PAPER["flip"], help="chance of a mirror image (default 0.5)")
    add("--rotation", type=float, default=0.0, help="largest angle, in degrees")
    add("--shift", type=float, default=0.0, help="largest shift, as a share of the side, on white")
    add("--zoom", type=float, nargs=2, default=[1.0, 1.0], metavar=("LO", "HI"), help="scale on a white canvas")
    add("--brightness", type=float, default=0.0, help="largest change, as a share")
    add("--contrast", type=float, default=0.0, help="largest change, as a share")
    add("--reader", choices=("dali", "torch"), default="dali")
    add("--workers", "--threads", type=_positive, default=2, help="preprocessing workers per rank (default 2)")


def _machine_flags(group) -> None:
    add = group.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:K")
    add(
        "--precision",
        type=canonical,
        default="auto",
        help="auto (bf16 if the hardware has it), amp_bf16, amp, fp32",
    )
    add("--cpu-threads", type=int, default=0, help="threads per rank on a CPU; 0: its share of the cores")
    add("--dist-timeout", type=float, default=10.0, metavar="MINUTES", help="a rank silent for so long is lost (10)")


def _watch_flags(group) -> None:
    add = group.add_argument
    add("--log-every", type=_positive, default=50, metavar="STEPS")
    add(
        "--save-every",
        default="1000",
        metavar="N[steps|epochs]",
        help="besides every epoch's end (1000 steps; 0: none)",
    )
    add("--keep", type=_positive, default=3, help="newest checkpoints to keep, besides every epoch's (default 3)")
    add("--eval-every", default="1", metavar="N[epochs|steps]", help="default: 1 epoch")
    add("--eval-retrieval", nargs="+", default=[], metavar="SET")
    add("--eval-zeroshot", nargs="+", default=[], metavar="SET")
    add("--eval-batch-size", type=_positive, default=256)
    add("--data-root", metavar="DIR", help="where the evaluation sets lie")
    add("--wandb", metavar="PROJECT", help="log to Weights & Biases too")


def parse_interval(text: str, unit: str) -> Interval:
    """ "500", "500steps" or "2epochs"; unit: what a bare number counts."""
    number = text
    for name in ("steps", "epochs"):
        if text.endswith(name):
            number, unit = text.removesuffix(name), name
    if not number.strip().isdigit():
        raise UserError(f"{text!r} is no interval: write 500steps or 2epochs")
    return Interval(int(number), unit)


def _check(args: argparse.Namespace) -> None:
    args.save_every = parse_interval(args.save_every, "steps")
    args.eval_every = parse_interval(args.eval_every, "epochs")
    for name, low, high in (
        ("flip", 0, 1),
        ("beta1", 0, 1),
        ("beta2", 0, 1),
        ("ema", 0, 1),
        ("history_momentum", 0, 1),
    ):
        if not low <= getattr(args, name) <= high:
            raise UserError(f"--{name.replace('_', '-')} must lie between {low} and {high}, not {getattr(args, name)}")
    for name in ("crop_area", "crop_aspect"):
        low, high = getattr(args, name)
        if not 0 < low <= high:
            raise UserError(f"--{name.replace('_', '-')} {low} {high}: give two positive numbers, the smaller first")
    try:
        schedule.create_schedule(args.lr_scheduler, args.lr, 1000, args.warmup, args.cooldown)
    except ValueError as error:
        raise UserError(f"--warmup {args.warmup}: {error}") from error


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _similarity(text: str) -> float | None:
    """first-batch is None: the history starts at the first batch's own means."""
    return None if text == "first-batch" else float(text)
