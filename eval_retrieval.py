"""Zero-shot image-text retrieval, and choosing between texts (SugarCrepe, Winoground, ARO).

python eval_retrieval.py --checkpoint RUN --dataset coco --data-root DIR
torchrun --nproc_per_node 8 eval_retrieval.py --checkpoint RUN --dataset coco,flickr30k --data-root DIR

A dataset is a name of the table in docs/evaluation.md, wds:FOLDER, or a caption file: Karpathy's JSON, BLIP's list,
COCO's annotations, or JSON lines {"image": path, "caption": [texts]}.
"""

from __future__ import annotations

import argparse

from alip import distributed
from alip.checkpoint import load_model
from alip.command import CommandParser
from alip.errors import run_command
from alip.eval.datasets import open_texts
from alip.eval.evaluate import results_folder, split_names, texts
from alip.eval.shared_flags import add_common, encoding_from


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", "--datasets", nargs="+", required=True, metavar="NAME", help="names or caption files"
    )
    add_common(parser)
    args = parser.parse_args(argv)
    with distributed.joined(args.device) as world:
        encoding = encoding_from(args, world)
        datasets = [open_texts(name, args.data_root) for name in split_names(args.dataset)]
        model = load_model(
            args.checkpoint, model_name=args.model, device=world.device, weights=args.weights, with_fingerprint=False
        )
        folder = results_folder(args.checkpoint, args.output)
        plots = not args.no_plots
        return texts(
            model, datasets, encoding, protocol=args.protocol, source=args.checkpoint, folder=folder, plots=plots
        )


if __name__ == "__main__":
    run_command(main)
