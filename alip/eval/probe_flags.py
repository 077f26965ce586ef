"""The flags of eval_zeroshot.py for probes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from alip.command import count
from alip.errors import UserError
from alip.eval.datasets import ClassificationDataset
from alip.eval.evaluate import CLASSIFICATION_TASKS
from alip.eval.labelled_rows import RowFields
from alip.eval.probe import SHOTS
from alip.eval.probe_data import with_training_images

_GROUPS = {"both": ("zeroshot", "probe"), "all": CLASSIFICATION_TASKS}


def add_probe(parser: argparse.ArgumentParser) -> None:
    """Adds --task, and what the probes need."""
    add = parser.add_argument
    tasks = ", ".join([*CLASSIFICATION_TASKS, *_GROUPS])
    add(
        "--task", nargs="+", default=["zeroshot"], metavar="TASK", help=f"one or several of {tasks} (default: zeroshot)"
    )
    add(
        "--shots",
        nargs="+",
        type=count,
        metavar="K",
        help=f"few-shot: training images per class (default: {' '.join(map(str, SHOTS))})",
    )
    add("--seeds", type=count, metavar="N", help="few-shot: samples of training images (default: 3)")
    add(
        "--probe-train", metavar="DATASET", help="training images for one dataset: a name, folder or file, same classes"
    )


def tasks_from(args: argparse.Namespace) -> tuple[str, ...]:
    """The tasks of --task, in the order of CLASSIFICATION_TASKS; UserError for what makes no sense."""
    named = [name for word in args.task for name in word.split(",") if name]
    unknown = next((name for name in named if name not in (*CLASSIFICATION_TASKS, *_GROUPS)), None)
    if unknown is not None or not named:
        raise UserError(f"--task {unknown or ''}: choose from {', '.join([*CLASSIFICATION_TASKS, *_GROUPS])}")
    chosen = {task for name in named for task in _GROUPS.get(name, (name,))}
    if "few-shot" not in chosen and (args.shots or args.seeds):
        raise UserError("--shots and --seeds belong to the few-shot probes: add --task few-shot, or leave them out")
    if args.probe_train and not {"probe", "few-shot"} & chosen:
        raise UserError("--probe-train belongs to the probes: add --task probe or few-shot, or leave it out")
    args.shots, args.seeds = sorted(set(args.shots or SHOTS)), args.seeds or 3
    return tuple(task for task in CLASSIFICATION_TASKS if task in chosen)


def give_training_images(
    datasets: Sequence[ClassificationDataset], source: str, data_root: str | None, fields: RowFields
) -> list[ClassificationDataset]:
    """The dataset with --probe-train's images; UserError unless there is one dataset."""
    if len(datasets) != 1:
        raise UserError(f"--probe-train is for one dataset, and --datasets names {len(datasets)}")
    return [with_training_images(datasets[0], source, data_root, fields)]
