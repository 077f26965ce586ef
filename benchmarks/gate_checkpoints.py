"""Which checkpoints find wrong texts best: AUC of the gates' scores by checkpoint and for means over several.

    python benchmarks/demo_seeds.py                                      # trains the runs, keeping early checkpoints
    python benchmarks/gate_checkpoints.py [--runs runs/demo_seeds/alip-*] [--data data/demo/train]

Prints a Markdown table, mean ± standard deviation over the runs, for a random choice of the training samples.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alip.command import CommandParser, count  # noqa: E402
from alip.data.loader import create_loader  # noqa: E402
from alip.data.score_table import SCORES  # noqa: E402
from alip.data.shards import Manifest, load_manifest  # noqa: E402
from alip.distributed import World  # noqa: E402
from alip.errors import UserError, run_command  # noqa: E402
from alip.eval.gates.labels import matched_auc, read_mismatch_labels  # noqa: E402
from alip.eval.gates.run_checkpoints import find_checkpoints, open_scorer  # noqa: E402

BATCH = 256
# What a column measures: a score, and the label that it is to find.
RAW, CAPTION = "is_mismatched", "caption_is_wrong"
COLUMNS = {
    "raw texts: S_tc": ("text_caption_similarity", RAW),
    "S_xt": ("image_text_similarity", RAW),
    "W^s·W^t": ("sample_text_weight", RAW),
    "captions: S_xc": ("image_caption_similarity", CAPTION),
    "W^c": ("caption_weight", CAPTION),
    "W^s·W^c": ("sample_caption_weight", CAPTION),
}


def batches(manifest: Manifest, path: Path, samples: int) -> list:
    """The first batches of a random order, without augmentation."""
    model = open_scorer(path, {}, torch.device("cpu")).model
    world = World(device=torch.device("cpu"))
    options = {"augmentation": None, "shuffle": True, "drop_last": True}
    loader = create_loader(manifest, BATCH, **model.input_format, world=world, threads=1, seed=0, **options)
    return [batch for _, batch in zip(range(samples // BATCH), loader.epoch(0), strict=False)]


def score(path: Path, data: list) -> np.ndarray:
    """(scores, samples) of one checkpoint."""
    scorer = open_scorer(path, {}, torch.device("cpu"))
    return torch.cat([scorer.score(batch) for batch in data], dim=1).numpy()


def rows_of(run: Path, manifest: Manifest, labels: dict[str, np.ndarray], samples: int) -> dict[str, list[float]]:
    """{row title: AUCs in the order of COLUMNS} of one run."""
    paths = find_checkpoints(run, 1_000_000)
    data = batches(manifest, paths[-1], samples)
    index = torch.cat([batch.index for batch in data]).numpy()
    steps = [int(torch.load(path, weights_only=True, map_location="cpu", mmap=True)["step"]) for path in paths]
    scores = dict(zip(paths, (score(path, data) for path in paths), strict=True))

    def aucs(chosen: list[Path]) -> list[float]:
        mean = np.mean([scores[path] for path in chosen], axis=0)
        return [matched_auc(mean[SCORES.index(name)], labels[label][index]) for name, label in COLUMNS.values()]

    found = {f"step {step}": aucs([path]) for step, path in zip(steps, paths, strict=True)}
    found["mean of the newest two"] = aucs(paths[-2:])
    found[f"mean of all {len(paths)}"] = aucs(paths)
    found["mean of eight at even ratios of the steps, the default"] = aucs(find_checkpoints(run, 8))
    return found


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = sorted((ROOT / "runs/demo_seeds").glob("alip-?"))
    parser.add_argument("--runs", type=Path, nargs="+", default=default, help="run folders with the same checkpoints")
    parser.add_argument("--data", default=ROOT / "data/demo/train", metavar="DIR/NAME", help="the demo's shards")
    parser.add_argument("--samples", type=count, default=2048, help="of the training data (default 2048)")
    arguments = parser.parse_args()
    if not arguments.runs:
        raise UserError("no runs: train them by `python benchmarks/demo_seeds.py`, or name them with --runs")
    manifest = load_manifest(arguments.data)
    labels = {name: read_mismatch_labels(manifest, name) for name in (RAW, CAPTION)}
    runs = [rows_of(run, manifest, labels, arguments.samples) for run in arguments.runs]
    if any(one.keys() != runs[0].keys() for one in runs):
        raise UserError("the runs hold checkpoints of different steps")
    print(f"| {len(runs)} runs | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}")
    for title in runs[0]:
        cells = [_cell(values) for values in zip(*(one[title] for one in runs), strict=True)]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


def _cell(values: tuple[float, ...]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


if __name__ == "__main__":
    run_command(main)
