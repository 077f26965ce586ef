"""Zero-shot classification, linear probe and few-shot probes.

python eval_zeroshot.py --checkpoint RUN --datasets cifar10,pets --data-root DIR
python eval_zeroshot.py --checkpoint RUN --datasets cifar10,pets --data-root DIR --task probe,few-shot
python eval_zeroshot.py --checkpoint RUN --datasets FOLDER             a folder with one folder of images per class
python eval_zeroshot.py --checkpoint RUN --suite datacomp --data-root DIR

A dataset is a name of the table in docs/evaluation.md, wds:FOLDER (CLIP_benchmark's layout), a folder, a table with
columns of image paths and labels (.csv .tsv .jsonl .parquet), or shards:NAME (rec shards with a label in the sidecar).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from alip import distributed
from alip.checkpoint import load_model
from alip.command import CommandParser
from alip.errors import UserError, run_command
from alip.eval.datasets import has_fields, open_classification
from alip.eval.evaluate import results_folder, split_names, zeroshot
from alip.eval.features import Encoding
from alip.eval.labelled_rows import RowFields
from alip.eval.probe_flags import add_probe, give_training_images, tasks_from
from alip.eval.shared_flags import add_common, encoding_from
from alip.eval.suite_run import run_suite
from alip.eval.suite_tasks import SUITES
from alip.eval.suites import open_suite


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--datasets", "--dataset", nargs="+", metavar="NAME", help="names, wds:FOLDER, folders, tables or shards:NAME"
    )
    parser.add_argument("--suite", choices=list(SUITES), help="all tasks of a suite under --data-root, and the mean")
    parser.add_argument("--classnames", metavar="FILE", help="class names, as JSON {dataset: [names]}")
    parser.add_argument("--prompts", metavar="FILE", help="templates, as JSON {dataset: [templates]}")
    usual = "default: one of the usual names"
    parser.add_argument("--image-field", metavar="NAME", help=f"the column of image paths in a table ({usual})")
    parser.add_argument("--label-field", metavar="NAME", help=f"the column of labels in a table or shards ({usual})")
    add_probe(parser)
    add_common(parser)
    args = parser.parse_args(argv)
    if bool(args.datasets) == bool(args.suite):
        raise UserError("name what to measure, by one of the two: --datasets NAME …, or --suite NAME")
    tasks = tasks_from(args)
    with distributed.joined(args.device) as world:
        encoding = encoding_from(args, world)
        if args.suite:
            return _suite(args, tasks, encoding)
        names = split_names(args.datasets)
        if (args.image_field or args.label_field) and not any(map(has_fields, [*names, args.probe_train or ""])):
            raise UserError("--image-field and --label-field belong to tables and shards: leave them out")
        fields = RowFields(args.image_field, args.label_field)
        lists = {"protocol": args.protocol, "classnames": args.classnames, "prompts": args.prompts, "fields": fields}
        datasets = [open_classification(name, args.data_root, **lists) for name in names]
        if args.probe_train:
            datasets = give_training_images(datasets, args.probe_train, args.data_root, fields)
        model = load_model(
            args.checkpoint, model_name=args.model, device=world.device, weights=args.weights, with_fingerprint=False
        )
        folder = results_folder(args.checkpoint, args.output)
        plots = not args.no_plots
        return zeroshot(
            model,
            datasets,
            encoding,
            protocol=args.protocol,
            source=args.checkpoint,
            folder=folder,
            plots=plots,
            tasks=tasks,
            shots=args.shots,
            seeds=args.seeds,
        )


def _suite(args: argparse.Namespace, tasks: Sequence[str], encoding: Encoding) -> int:
    if tuple(tasks) != ("zeroshot",) or args.classnames or args.prompts or args.image_field or args.label_field:
        raise UserError(
            "--suite has its own task, data, names and templates: leave out --task, --classnames, --prompts, "
            "--image-field and --label-field"
        )
    suite = open_suite(args.suite, args.data_root, args.protocol)
    model = load_model(
        args.checkpoint,
        model_name=args.model,
        device=encoding.world.device,
        weights=args.weights,
        with_fingerprint=False,
    )
    return run_suite(
        model,
        suite,
        encoding,
        protocol=args.protocol,
        source=args.checkpoint,
        folder=results_folder(args.checkpoint, args.output),
        plots=not args.no_plots,
    )


if __name__ == "__main__":
    run_command(main)
