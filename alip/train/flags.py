"""Every flag of train.py, declared once: its name, its default, what a change of it means, and which part uses it.

A new knob is one line here and one where its part uses the value. `tag` is what a change means to a run that is
resumed; `to` names the part and its parameter ("loss.history_init"; only "loss" where the parameter has the flag's own
name), so that `arguments.options(args, "loss")` gives a part all that it needs.
"""

from __future__ import annotations

import argparse
import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from alip.command import MOST_WORKERS, CommandParser, count, natural, number, positive_number, seed, whole
from alip.data.captions import SAMPLING
from alip.data.order import ORDERS, WINDOW_SHARDS
from alip.data.shard_cache import CACHE_SIZE, parse_size
from alip.loss import OBJECTIVES
from alip.model.compilation import CHOICES
from alip.model.overrides import RESIZE_MODES
from alip.model.precision import canonical
from alip.train.open_clip_flags import add_refused
from alip.train.presets import GLOBAL_BATCH, PAPER, PRESETS
from alip.train.schedule import canonical_name
from alip.train.sharding import SCOPES


class Tag(Enum):
    """What a change of a flag means when a run is resumed."""

    RECIPE = "another run: it decides what is learned"
    NUMERICS = "noted: it changes rounding only"
    LAYOUT = "noted: how a step's batch is divided over ranks and micro-batches"
    SOURCE = "names data, model or run; these are compared by their content"
    MACHINE = "free: where it runs, how fast, and what is logged and kept"


RECIPE, NUMERICS, LAYOUT, SOURCE, MACHINE = Tag


@dataclass(frozen=True)
class Flag:
    """dest: its attribute in the parsed arguments. to: (part, parameter) of each use; convert: value → parameter."""

    dest: str
    tag: Tag
    default: Any
    to: tuple[tuple[str, str], ...]
    convert: Callable[[Any], Any] | None


def create_parser() -> tuple[argparse.ArgumentParser, dict[str, Flag]]:
    """train.py's parser, and its flags by dest."""
    parser = CommandParser(
        prog="train.py",
        description="Trains a model with ALIP on rec shards. One process, or many under torchrun.",
        allow_abbrev=False,
    )
    table: dict[str, Flag] = {}
    groups = {
        "run": _run_flags,
        "data": _data_flags,
        "model": _model_flags,
        "optimization": _optimizer_flags,
        "gates and loss": _gate_flags,
        "augmentation": _augmentation_flags,
        "machine": _machine_flags,
        "logging, evaluation and checkpoints": _logging_flags,
    }
    for title, declare in groups.items():
        declare(_adder(parser.add_argument_group(title), table))
    add_refused(parser)
    return parser, table


def _adder(group, table: dict[str, Flag]):
    def add(names: str, tag: Tag, to: str = "", *, convert=None, help: str, **options) -> None:
        """names: as argparse takes them; to: uses; both separated by spaces. Recipes' defaults are the paper's."""
        dest = names.split()[0].removeprefix("--").replace("-", "_")
        switch = options.get("action") == "store_true"
        default = options.setdefault("default", PAPER.get(dest, False if switch else None))
        shown = default not in (None, False, [], {}) and "%(default)s" not in help
        group.add_argument(*names.split(), **options, help=f"{help} (default {default})" if shown else help)
        uses = [use.partition(".") for use in to.split()]
        table[dest] = Flag(dest, tag, default, tuple((part, name or dest) for part, _, name in uses), convert)

    return add


_SWITCH: dict[str, Any] = {"action": "store_true"}
_EITHER: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
_NOT_NEGATIVE: dict[str, Any] = {"type": number(0)}
_FRACTION: dict[str, Any] = {"type": number(0, 1)}
_POSITIVE: dict[str, Any] = {"type": positive_number}


def _run_flags(add) -> None:
    add("--output", MACHINE, metavar="RUN", help="run folder: settings, metrics, checkpoints")
    add("--logs", MACHINE, metavar="DIR", help="with --name: the run folder is DIR/NAME; default ./logs")
    add("--name", MACHINE, help="of the run, under --logs")
    add("--check", MACHINE, **_SWITCH, help="check arguments, data, model and output folder, and train nothing")
    add("--debug", MACHINE, **_SWITCH, help="log more: model, optimizer, the libraries' own messages")
    add("--preset", SOURCE, choices=sorted(PRESETS), help="a whole recipe; other flags override its parts")
    add("--resume", MACHINE, "run", metavar="latest|PATH", help="latest (or auto): the newest of --output, if any")
    add("--resume-force", MACHINE, "run.force", **_SWITCH, help="even if data, model or recipe differ")
    add("--epochs", RECIPE, "plan", type=count, help="passes over the data")
    add("--steps", RECIPE, "plan", type=count, help="optimizer steps in all; overrides --epochs")
    size = {"type": count_or_auto, "default": 256, "metavar": "N|auto"}
    add("--batch-size", LAYOUT, "plan layout loader", **size, help="samples per rank and micro-batch; auto: what fits")
    whole = f"of a step, over ranks and micro-batches: gives --accum-freq; with --batch-size auto {GLOBAL_BATCH}"
    add("--global-batch-size", LAYOUT, type=count, metavar="N", help=whole)
    add("--accum-freq", LAYOUT, "plan layout", type=count, default=1, help="micro-batches per step, negatives shared")
    add("--seed", RECIPE, "loader run", type=seed, default=0, help="of the model's start, the data's order, …")


def _data_flags(add) -> None:
    shards = "shards that data2rec.py wrote, or released rec files"
    add("--train-data", SOURCE, "data", metavar="DIR/NAME", help=shards)
    add("--dataset-type", SOURCE, "data", default="auto", help="auto, rec, or synthetic: random images and texts")
    add("--train-num-samples", SOURCE, "data", type=count, metavar="N", help="of the synthetic dataset")
    add("--reader", NUMERICS, "loader", choices=("dali", "torch"), default="dali", help="what decodes the images")
    captions = "which of several captions of an image an epoch takes"
    add("--caption-sampling", RECIPE, "loader", choices=SAMPLING, default="random", help=captions)
    order = "blocks, feistel (the same without memory) or shards; default blocks, at a URL shards"
    add("--data-order", RECIPE, "loader", choices=ORDERS, help=order)
    window = "shards that --data-order shards mixes at a time"
    add("--window-shards", RECIPE, "loader", type=count, default=WINDOW_SHARDS, metavar="K", help=window)
    size = "of the shards kept in --cache-dir, for --train-data at a URL"
    add("--cache-size", MACHINE, "loader", type=_size, default=CACHE_SIZE, metavar="100GB", help=size)
    workers = "loader.threads evaluations"
    add(
        "--workers --threads",
        MACHINE,
        workers,
        type=whole(1, MOST_WORKERS),
        default=2,
        help="preprocessing workers per rank",
    )


def _model_flags(add) -> None:
    add("--model", SOURCE, default="ViT-B-32", help="open_clip name or JSON file")
    add("--pretrained", SOURCE, "model", metavar="PATH|TAG", help="start from these weights")
    add("--grad-checkpointing", NUMERICS, "model", **_SWITCH, help="less memory, a third more work")
    compile: dict[str, Any] = {"nargs": "?", "const": "on", "default": "auto", "choices": CHOICES}
    towers = "torch.compile the towers; auto: on GPUs"
    add("--torchcompile --compile", NUMERICS, "model.compile", **compile, help=towers)
    add("--force-quick-gelu --quick-gelu", RECIPE, "model.quick_gelu", **_SWITCH, help="OpenAI's approximate GELU")
    dropout = "--force-patch-dropout --patch-dropout"
    add(dropout, RECIPE, "model.patch_dropout", **_FRACTION, help="fraction of image patches left out in training")
    add("--cache-dir", MACHINE, "loader", metavar="DIR", help="for downloads: models, tokenizers, shards at a URL")
    add("--pretrained-image", SOURCE, "model", **_SWITCH, help="start a timm image tower from its ImageNet weights")
    size = "square input in pixels, instead of the model's own"
    add("--force-image-size", RECIPE, "model.image_size", type=whole(1, 4096), nargs="+", metavar="SIDE", help=size)
    add("--lock-image", RECIPE, "model", **_SWITCH, help="freeze the image tower")
    add(
        "--lock-image-unlocked-groups",
        RECIPE,
        "model",
        type=natural,
        default=0,
        help="but for its last groups of layers",
    )
    add("--lock-image-freeze-bn-stats", RECIPE, "model", **_SWITCH, help="BatchNorm's running statistics of it too")
    add("--use-bn-sync", RECIPE, **_SWITCH, help="BatchNorm with the statistics of all ranks")
    add("--lock-text", RECIPE, "model", **_SWITCH, help="freeze the text tower")
    add("--lock-text-unlocked-layers", RECIPE, "model", type=natural, default=0, help="but for its last layers")
    norms = "LayerNorms of a Hugging Face text tower too"
    add("--lock-text-freeze-layer-norm", RECIPE, "model", **_SWITCH, help=norms)
    three: dict[str, Any] = {"type": number(), "nargs": "+", "metavar": "X"}
    add("--image-mean", RECIPE, "model", **three, help="of red, green and blue, for values 0 to 1")
    add("--image-std", RECIPE, "model", **three, help="of red, green and blue, for values 0 to 1")
    add("--image-interpolation", RECIPE, "model loader.interpolation", help="bilinear or bicubic, of every resize")
    add("--image-resize-mode", RECIPE, "model", choices=RESIZE_MODES, help="of evaluation; training crops at random")


def _optimizer_flags(add) -> None:
    add("--lr", RECIPE, "optimizer schedule.peak", **_NOT_NEGATIVE, help="highest learning rate")
    add("--opt", RECIPE, "optimizer", default="adamw", help="adamw (fused), or timm/NAME")
    more = "further arguments of the optimizer, such as momentum=0.9"
    add("--opt-kwargs", RECIPE, "optimizer", nargs="*", default={}, action=StoreOptions, metavar="KEY=VALUE", help=more)
    add("--beta1", RECIPE, "optimizer", **_FRACTION, default=None, help="of the optimizer; adamw: 0.9")
    add("--beta2", RECIPE, "optimizer", **_FRACTION, default=None, help="of the optimizer; adamw: 0.98")
    add("--eps", RECIPE, "optimizer", **_POSITIVE, default=None, help="of the optimizer; adamw: 1e-6")
    add("--wd --weight-decay", RECIPE, "optimizer.weight_decay", **_NOT_NEGATIVE, help="weight decay")
    add("--decay-all", RECIPE, "optimizer", **_EITHER, help="decay biases, norms, … too")
    names = "one-cycle, cosine, const, const-cooldown"
    add("--lr-scheduler --schedule", RECIPE, "schedule.kind", type=canonical_name, help=names)
    add("--warmup", RECIPE, "schedule", help="fraction of all steps (0.1) or number of steps (500)")
    add(
        "--cooldown",
        RECIPE,
        "schedule",
        **_FRACTION,
        default=None,
        help="fraction of all steps, for const-cooldown; 0.2",
    )
    add("--epochs-cooldown", RECIPE, **_NOT_NEGATIVE, metavar="N", help="the same in epochs")
    add("--cycle-beta1", RECIPE, "schedule", **_EITHER, help="one-cycle moves beta1 too")
    add(
        "--grad-clip-norm --grad-clip",
        RECIPE,
        "step.grad_clip",
        **_NOT_NEGATIVE,
        help="largest gradient norm; 0: no clipping",
    )
    add("--logit-scale-max", RECIPE, "step", **_POSITIVE, default=100.0, help="upper end of the logit scale")
    add(
        "--ema",
        RECIPE,
        "state",
        **_FRACTION,
        default=0.0,
        metavar="DECAY",
        help="keep averaged weights too, e.g. 0.9999",
    )
    add("--nonfinite-limit", MACHINE, "plan", type=count, default=10, help="give up after so many bad steps in a row")


def _gate_flags(add) -> None:
    objective = "clip-text and clip-caption: plain CLIP on one of the texts, no gates"
    add("--objective", RECIPE, "loss", choices=list(OBJECTIVES), default="alip", help=objective)
    add("--gamma-sample", RECIPE, "loss", **_NOT_NEGATIVE, help="sharpness of W^s")
    add("--gamma-pair", RECIPE, "loss", **_NOT_NEGATIVE, help="sharpness of W^t and W^c")
    add("--history-momentum", RECIPE, "loss", **_FRACTION, help="of the gates' history")
    add("--history-init", RECIPE, "loss", type=_similarity, metavar="X|first-batch", help="where the history starts")
    off = {**_SWITCH, "convert": operator.not_}
    add("--no-sample-weight", RECIPE, "loss.use_sample_weight", **off, help="W^s = 1")
    add("--no-text-weight", RECIPE, "loss.use_text_weight", **off, help="W^t = 1")
    add("--no-caption-weight", RECIPE, "loss.use_caption_weight", **off, help="W^c = 1")
    add("--loss-chunk-size", NUMERICS, "loss.chunk_size", type=count, help="rows of logits at a time")
    column = "metadata column, true where the raw text does not match the image: reports the gates' AUC per epoch"
    add("--mismatch-column", MACHINE, "state", metavar="COLUMN", help=column)


def _augmentation_flags(add) -> None:
    pair: dict[str, Any] = {"type": number(), "nargs": 2, "metavar": ("LO", "HI"), "action": _StoreTuple}
    add("--crop-area", RECIPE, "augmentation.area", **pair, help="of the random crop, as a fraction of the image")
    add("--crop-aspect", RECIPE, "augmentation.aspect", **pair, help="width / height of the random crop")
    add("--flip", RECIPE, "augmentation", **_FRACTION, help="probability of a mirror image")
    add("--rotation", RECIPE, "augmentation", **_NOT_NEGATIVE, default=0.0, help="largest angle, in degrees")
    add(
        "--shift",
        RECIPE,
        "augmentation",
        **_NOT_NEGATIVE,
        default=0.0,
        help="largest shift on white, as a fraction of the side",
    )
    add("--zoom", RECIPE, "augmentation", **pair, default=(1.0, 1.0), help="scale on a white canvas")
    add("--brightness", RECIPE, "augmentation", **_NOT_NEGATIVE, default=0.0, help="largest change, as a fraction")
    add("--contrast", RECIPE, "augmentation", **_NOT_NEGATIVE, default=0.0, help="largest change, as a fraction")


def _machine_flags(add) -> None:
    add("--device", MACHINE, default="auto", help="auto, cpu, cuda or cuda:K")
    precision = "auto (bf16 if the hardware has it), amp_bf16, amp or fp32"
    add("--precision", NUMERICS, "evaluations state step", type=canonical, default="auto", help=precision)
    scopes = "divide parameters, gradients and moments over all ranks, or over those of each machine"
    add("--fsdp", NUMERICS, choices=SCOPES, help=scopes)
    add("--deterministic", NUMERICS, **_SWITCH, help="deterministic kernels only (slower on a GPU)")
    add(
        "--cpu-threads",
        MACHINE,
        type=whole(0, MOST_WORKERS),
        default=0,
        help="threads per rank on a CPU; 0: equal parts of the cores",
    )
    add(
        "--dist-timeout",
        MACHINE,
        type=number(0.01, 35_000),  # of what gloo can count in milliseconds
        default=10.0,
        metavar="MINUTES",
        help="a rank silent for so long is lost",
    )


def _logging_flags(add) -> None:
    interval = "N[steps|epochs]"
    add(
        "--log-every-n-steps --log-every",
        MACHINE,
        "plan.log_every",
        type=count,
        default=50,
        help="steps per log line",
    )
    to = {"default": "tensorboard", "metavar": "LIST", "convert": lambda names: "tensorboard" in names}
    add("--report-to", MACHINE, "run.tensorboard", **to, help="tensorboard, wandb, all or none")
    add("--wandb-project-name", MACHINE, metavar="PROJECT", default="alip", help="for --report-to wandb")
    add("--wandb", MACHINE, "run", metavar="PROJECT", help="report to Weights & Biases too, into this project")
    add("--save-every", MACHINE, "plan", default="1000", metavar=interval, help="besides every epoch's end; 0: none")
    add("--save-most-recent", MACHINE, **_SWITCH, help="always so: the newest checkpoint is kept")
    add("--keep", MACHINE, "run", type=count, default=None, metavar="N", help="newest checkpoints to keep; 2")
    every = "keep every K-th epoch's too; 0: none"
    add("--keep-epochs --save-frequency", MACHINE, "run", type=natural, default=0, metavar="K", help=every)
    add("--delete-previous-checkpoint", MACHINE, **_SWITCH, help="--keep 1 --keep-epochs 0")
    add("--eval-every", MACHINE, "plan", metavar=interval, help="a bare number counts epochs; default 1")
    add("--val-frequency", MACHINE, type=natural, metavar="EPOCHS", help="--eval-every in epochs")
    add("--zeroshot-frequency", MACHINE, type=natural, metavar="EPOCHS", help="--eval-every in epochs")
    several: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "DATASET"}
    add("--eval-retrieval", MACHINE, "evaluations.retrieval", **several, help="names or caption files")
    add("--eval-zeroshot", MACHINE, "evaluations.zeroshot", **several, help="names or folders of classes")
    add("--eval-suite", MACHINE, "evaluations.suite", metavar="NAME", help="tasks of a suite under --data-root")
    add("--eval-probe", MACHINE, "evaluations.probe", **several, help="linear probe; datasets with training images")
    add("--eval-few-shot", MACHINE, "evaluations.few_shot", **several, help="probes on 1, 4 and 16 images per class")
    add("--eval-batch-size", MACHINE, "evaluations.batch_size", type=count, default=256, help="of evaluations")
    folder = "ImageNet's validation images, one folder per class: zero-shot"
    add("--imagenet-val", MACHINE, "evaluations", metavar="DIR", help=folder)
    add("--data-root", MACHINE, "evaluations", metavar="DIR", help="folder of the evaluation datasets")


class _StoreTuple(argparse.Action):
    """nargs as a tuple: a value that nothing changes by accident."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values))


class StoreOptions(argparse.Action):
    """KEY=VALUE words as a dict; values are Python literals, or text where they are not."""

    def __call__(self, parser, namespace, values, option_string=None):
        options = {}
        for word in values:
            key, equals, text = word.partition("=")
            if not (equals and key):
                raise argparse.ArgumentError(self, f"{word!r} is not KEY=VALUE")
            try:
                options[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                options[key] = text
        setattr(namespace, self.dest, options)


def count_or_auto(text: str) -> int | str:
    """A count of at least 1, or "auto"."""
    return text if text == "auto" else count(text)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _similarity(text: str) -> float | None:
    """first-batch is None: the history starts at the first batch's own means."""
    return None if text == "first-batch" else number(-1, 1)(text)
