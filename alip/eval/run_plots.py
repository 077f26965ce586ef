"""Pictures of a finished run: loss curves, and the weights of matched against mismatched raw texts.

python -m alip.eval.run_plots --run RUN [--scores scores.parquet --data DIR/NAME --mismatch-column COLUMN] --output DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pyarrow.parquet as pq
from matplotlib import pyplot as plt

from alip.data.shards import load_manifest
from alip.errors import UserError, run_command
from alip.eval.gates.labels import matched_auc, read_mismatch_labels

MATCHED, MISMATCHED = "tab:blue", "tab:red"


def read_metrics(run: Path, kind: str) -> dict[str, np.ndarray]:
    """The columns of a run's metrics.jsonl lines of one kind: {name: (lines,)}, a missing number as NaN.

    Raises UserError when the run has no such lines. Lines of a resumed run replace earlier ones of the same step.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the folder of a run of train.py")
    by_step = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row.get("kind") == kind:
            by_step[row["step"]] = row
    if not by_step:
        raise UserError(f"{path}: holds no lines of kind {kind!r} yet; let the run log at least one step")
    rows = [by_step[step] for step in sorted(by_step)]
    names = {name for row in rows for name, value in row.items() if isinstance(value, (int, float))}
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in sorted(names)}


def draw_curves(run: Path, output: Path) -> None:
    """Four panels over the steps: losses, similarities with their histories, mean weights, learning rate and scale."""
    train = read_metrics(run, "train")
    figure, ((losses, similarities), (weights, rates)) = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    step = train["step"]

    for name, label in (("loss", "both paths"), ("text_loss", "image-text"), ("caption_loss", "image-caption")):
        losses.plot(step, train[name], label=label)
    losses.set_title("weighted loss")

    pairs = (("text_caption", "tc"), ("image_text", "xt"), ("image_caption", "xc"))
    for (name, short), colour in zip(pairs, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        similarities.plot(step, train[f"{name}_similarity"], color=colour, alpha=0.5, label=f"mean S_{short}")
        similarities.plot(step, train[f"history_{short}"], color=colour, linestyle="--", label=f"H_{short}")
    similarities.set_title("similarities and their histories")

    for name, label in (("sample_weight", "W$^s$"), ("text_weight", "W$^t$"), ("caption_weight", "W$^c$")):
        weights.plot(step, train[name], label=label)
    weights.set_title("mean gate weights")

    rates.plot(step, train["lr"], color="tab:gray", label="learning rate")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    scale = rates.twinx()
    scale.plot(step, train["logit_scale"], color="tab:purple", label="logit scale")
    rates.set_title("learning rate (gray) and logit scale (purple)")
    for axes in (losses, similarities, weights):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    for axes in (weights, rates):
        axes.set_xlabel("step")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def draw_gates(scores: dict[str, np.ndarray], is_mismatched: np.ndarray, output: Path) -> None:
    """Histograms of S_tc and W^s·W^t, matched against mismatched raw texts, with their AUC."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    panels = (
        ("text_caption_similarity", "S$_{tc}$, raw text against caption"),
        ("sample_text_weight", "W$^s$·W$^t$, weight of the image-text pair"),
    )
    for panel, (name, title) in zip(axes, panels, strict=True):
        values = scores[name]
        bins = np.linspace(values.min(), values.max() + 1e-6, 41)
        for part, colour, label in (
            (~is_mismatched, MATCHED, "matched raw text"),
            (is_mismatched, MISMATCHED, "mismatched raw text"),
        ):
            share = np.full(part.sum(), 1 / max(1, part.sum()))
            label = f"{label}: mean {values[part].mean():.2f}"
            panel.hist(values[part], bins, weights=share, color=colour, alpha=0.55, label=label)
        panel.set_title(f"{title}: AUC {matched_auc(values, is_mismatched):.2f}")
        panel.set_ylabel("share of the samples")
        panel.legend(fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def main() -> None:
    """Draws the curves, and the weights if there are scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run of train.py")
    parser.add_argument("--scores", type=Path, help="table of `python -m alip.eval.gates`")
    parser.add_argument("--data", help="the shards that the scores are of, DIR/NAME")
    parser.add_argument("--mismatch-column", metavar="COLUMN", help="JSON field of the sources, true where mismatched")
    parser.add_argument("--output", type=Path, help="folder of the pictures (default: RUN/pictures)")
    arguments = parser.parse_args()
    folder = arguments.output or arguments.run / "pictures"

    draw_curves(arguments.run, folder / "curves.png")
    print(folder / "curves.png")
    if arguments.scores:
        if not (arguments.data and arguments.mismatch_column):
            raise UserError(
                "--scores needs --data and --mismatch-column too, to tell matched from mismatched raw texts"
            )
        table = pq.read_table(arguments.scores)
        scores = {name: table[name].to_numpy() for name in ("text_caption_similarity", "sample_text_weight")}
        draw_gates(
            scores, read_mismatch_labels(load_manifest(arguments.data), arguments.mismatch_column), folder / "gates.png"
        )
        print(folder / "gates.png")


if __name__ == "__main__":
    run_command(main)
