"""Plots of a run: losses, similarities, gate weights and evaluations over the steps; the gates on matched and
mismatched raw texts.

python -m alip.eval.plots --run RUN [--scores scores.parquet --data DIR/NAME --mismatch-column COLUMN] [--output DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from alip import plot_style as style
from alip.command import CommandParser
from alip.data.score_table import ScoreTable
from alip.data.shards import Manifest, load_manifest
from alip.errors import UserError, run_command
from alip.eval.gates.labels import best_of_captions, matched_auc, read_mismatch_labels
from alip.eval.plots import training

_SCORES = ("text_caption_similarity", "sample_text_weight")


def main(argv: list[str] | None = None) -> int:
    """Plots the curves, and the gates if there are scores. Exit status 1 if one of them could not be plotted."""
    parser = CommandParser(
        prog="python -m alip.eval.plots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a run of train.py")
    parser.add_argument("--scores", type=Path, help="table of `python -m alip.eval.gates`")
    parser.add_argument("--data", help="the shards that were scored, DIR/NAME")
    parser.add_argument("--mismatch-column", metavar="COLUMN", help="JSON field of the sources, true where mismatched")
    parser.add_argument("--output", type=Path, help="folder for the plots (default: RUN/plots)")
    args = parser.parse_args(argv)
    folder = args.output or args.run / "plots"

    if args.scores and not (args.data and args.mismatch_column):
        raise UserError("--scores needs --data and --mismatch-column too, to tell matched from mismatched raw texts")
    training.read_metrics(args.run, "train")  # what is wrong with the input is the user's to know, not a warning
    written = style.plot_or_warn(lambda path: training.curves(args.run, path), folder / "curves")
    if args.scores:
        manifest = load_manifest(args.data)
        with ScoreTable(args.scores) as table:
            scores = _read_scores(table, manifest)
        labels = read_mismatch_labels(manifest, args.mismatch_column)
        aucs = {name: matched_auc(values, labels) for name, values in scores.items()}
        written += style.plot_or_warn(lambda path: training.gates(scores, labels, aucs, path), folder / "gates")
    for path in written:
        print(path)
    return 0 if len(written) == len(style.outputs(folder / "curves")) * (2 if args.scores else 1) else 1


def _read_scores(table: ScoreTable, manifest: Manifest) -> training.Columns:
    """Scores of the samples, (samples,) each; with several captions a sample's highest (see labels.labelled_scores).
    UserError unless they are those of this dataset."""
    missing = [name for name in _SCORES if name not in table.columns]
    if missing:
        raise UserError(f"{table.path} has no column {missing[0]}: write it again with `python -m alip.eval.gates`")
    table.check_data(manifest)
    columns = {name: table.column(name) for name in _SCORES}
    return best_of_captions(columns, np.flatnonzero(np.diff(table.column("index"), prepend=-1)))


if __name__ == "__main__":
    run_command(main)
