"""What the gates make of a dataset: similarities and weights of every sample, in a table and a page to look at.

    python -m alip.eval.gates --checkpoint RUN --data DIR/NAME --output DIR [--mismatch-column COLUMN]

Writes DIR/gates.parquet, one row per sample, DIR/gates.json, the summary, and DIR/gates.html, a page that opens in any
browser. With --mismatch-column, a field of the sources' JSON that is true where a raw text does not match its image,
both show how well each score finds those. See docs/gates.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alip import command, distributed
from alip.cluster.ray_engine import add_flags as add_engine_flags
from alip.cluster.ray_engine import check_flags as check_engine_flags
from alip.cluster.ray_engine import engine_of
from alip.data.score_table import LABELS, ScoreTable
from alip.data.shards import Manifest, load_manifest
from alip.errors import UserError, run_command
from alip.eval.gates.labels import RAW_TEXT_LABEL, labelled_scores, matched_aucs, summarize
from alip.eval.gates.page import write_page
from alip.eval.gates.page_data import collect
from alip.eval.gates.run_checkpoints import check_recipes, find_checkpoints, open_scorer
from alip.eval.gates.scoring import score_dataset
from alip.files import write_json
from alip.folder_lock import lock_folder


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.CommandParser(
        prog="python -m alip.eval.gates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", nargs="+", action="extend", required=True, help="run folders or checkpoint files of train.py")
    add(
        "--average",
        type=command.count,
        default=8,
        metavar="N",
        help="of a run folder: mean over N checkpoints (8); 1: newest",
    )
    add("--data", required=True, metavar="DIR/NAME", help="shards")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the table, the summary and the page")
    add("--mismatch-column", metavar="COLUMN", help="JSON field of the sources, true where the raw text is mismatched")
    add("--caption-mismatch-column", metavar="COLUMN", help="the same for the caption")
    for name, what in (("sample", "γ_s"), ("pair", "γ_p")):
        add(f"--gamma-{name}", type=command.number(), help=f"{what}; default: the run's own")
    for name, what in (("sample", "W^s"), ("text", "W^t"), ("caption", "W^c")):
        add(f"--{name}-weight", action=argparse.BooleanOptionalAction, help=f"use {what}; default: as the run did")
    add("--batch-size", type=command.count, default=256)
    add("--workers", type=command.whole(1, command.MOST_WORKERS), default=2, help="decoding threads per rank")
    add("--device", default="auto", help="auto, cpu or cuda")
    add_engine_flags(parser)
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


def main() -> None:
    """Scores, then writes the summary and the page on rank 0."""
    args = parse_arguments()
    check_engine_flags(args)
    if args.output.suffix == ".parquet" or args.output.is_file():
        raise UserError(f"--output {args.output}: give a folder; the table becomes gates.parquet in it")
    with distributed.joined("cpu" if args.engine == "ray" else args.device, timeout_minutes=60) as world:
        manifest, path = load_manifest(args.data), args.output / "gates.parquet"
        overrides = {name: getattr(args, name) for name in ("gamma_sample", "gamma_pair")}
        overrides |= {f"use_{name}_weight": getattr(args, f"{name}_weight") for name in ("sample", "text", "caption")}
        paths = [path for run in args.checkpoint for path in find_checkpoints(run, args.average)]
        columns = {"is_mismatched": args.mismatch_column, "is_caption_mismatched": args.caption_mismatch_column}
        options = {"columns": columns, "batch_size": args.batch_size, "workers": args.workers, "quiet": args.quiet}
        with lock_folder(args.output, world, remove=True):
            if args.engine == "ray":
                from alip.eval.gates.on_cluster import score_on_cluster

                with engine_of(args, world.world_size) as engine:
                    score_on_cluster(engine, paths, overrides, args.data, path, device=args.device, **options)
            else:
                scorers = [open_scorer(path, overrides, world.device) for path in paths]
                check_recipes(scorers)
                score_dataset(scorers, manifest, path, world, **options)
            if world.is_main:
                report(path, manifest, args.output)


def report(path: Path, manifest: Manifest, output: Path) -> None:
    """The summary and the page, from the table."""
    with ScoreTable(path) as table:
        steps = ", ".join(str(one["step"]) for one in table.metadata["checkpoints"])
        scored = f"{manifest.samples} samples"
        scored += f", {table.rows} captions," if manifest.captions_per_image > 1 else ""
        print(f"{scored} scored with the checkpoint{'s' if ',' in steps else ''} of step {steps}: {path}")
        summary = {"samples": manifest.samples, **table.metadata}
        summary |= {"captions": table.rows} if manifest.captions_per_image > 1 else {}
        summary["auc"] = {label: matched_aucs(table, label) for label in LABELS if label in table.columns}
        if RAW_TEXT_LABEL in table.columns:
            names = ("text_caption_similarity", "sample_text_weight")
            is_mismatched, scores = labelled_scores(table, RAW_TEXT_LABEL, names)
            summary |= summarize(*scores.values(), is_mismatched)
            print(
                f"mean W_s*W_t: matched texts {summary['mean_weight_matched']:.3f}, mismatched texts "
                f"{summary['mean_weight_mismatched']:.3f}; AUC of S_tc {summary['auc_text_caption_similarity']:.3f}, "
                f"of W_s*W_t {summary['auc_weight']:.3f}"
            )
        write_json(output / "gates.json", summary)
        size = write_page(output / "gates.html", collect(table, manifest))
        print(f"{output / 'gates.html'}: {size / 1e6:.1f} MB, open it in a browser")


if __name__ == "__main__":
    run_command(main)
