"""Prints what the quickstart measured: CLIP and ALIP beside raw pixels and chance, the gates, and where everything is.

python scripts/demo/summary.py --run runs/quickstart --clip runs/quickstart-clip
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from classes import CLASSES
from unpack import SPLITS

from alip.command import CommandParser
from alip.errors import UserError, run_command
from alip.eval import results

ROW = "{:<30}{:>8}{:>8}{:>8}{:>8}   {:>10}"
RECALLS = [f"{direction}_R@{k}" for direction in ("text_to_image", "image_to_text") for k in (1, 5)]


def read_json(path: Path) -> dict:
    """A JSON file that an earlier step of the quickstart wrote."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `bash scripts/quickstart.sh` again to make it")
    return json.loads(path.read_text())


def measured(run: Path, dataset: str) -> tuple[dict, dict]:
    """A run's numbers on one benchmark: retrieval and zero-shot; of several checkpoints the one measured last."""
    found = {
        entry["task"]: entry["numbers"]
        for entry in results.load(run / "results")
        if entry["protocol"] == "standard" and entry["dataset"] == dataset
        if entry.get("benchmark", dataset) == dataset and not entry.get("given")
    }
    try:
        return found["retrieval"], found["zeroshot"]
    except KeyError as missing:
        raise UserError(f"{run}/results: holds no {missing} result on {dataset}; run the quickstart again") from None


def rows_of(split: str, run: Path, clip: Path) -> list[str]:
    """The lines of one benchmark: CLIP, ALIP, raw pixels, chance."""
    name = SPLITS[split]
    lines = []
    for title, folder in (("CLIP on the raw texts", clip), ("ALIP", run)):
        retrieval, zeroshot = measured(folder, name)
        lines.append(_row(title, [retrieval[key] for key in RECALLS], zeroshot["top1"]))
    pairs = int(retrieval["images"])
    pixels = read_json(run / "results/pixels.json")[name]
    chance = [f"{100 * k / pairs:.2f}" for k in (1, 5, 1, 5)]
    return [
        ROW.format(f"{split}, {pairs:,} pairs", "", "", "", "", ""),
        *lines,
        _row("nearest pixels, true names", [pixels[key] for key in RECALLS], pixels["top1"]),
        ROW.format("  chance", *chance, f"{100 / len(CLASSES):.1f}"),
    ]


def _row(title: str, values: list[float], accuracy: float) -> str:
    return ROW.format(f"  {title}", *(f"{value:.1f}" for value in values), f"{accuracy:.1f}")


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="ALIP's run folder")
    parser.add_argument("--clip", type=Path, required=True, help="run folder of CLIP on the raw texts")
    arguments = parser.parse_args()
    run, clip = arguments.run, arguments.clip

    gates = read_json(run / "results/gates.json")
    print(ROW.format("", "text → image", "", "image → text", "", ""))
    print(ROW.format("in %", "R@1", "R@5", "R@1", "R@5", f"{len(CLASSES)} classes"))
    for split in SPLITS:
        print("\n".join(rows_of(split, run, clip)))
    print(
        "\nBoth models saw the same samples in the same order; one seed. Nearest pixels is given the true name"
        "\nand class of every training image, which neither model sees. Means over seeds: docs/evidence.md"
    )
    print(
        f"\ngates, over all training samples: mean W^s*W^t {gates['mean_weight_matched']:.2f} for matched raw texts, "
        f"{gates['mean_weight_mismatched']:.2f} for mismatched ones;\n"
        f"AUC {gates['auc_text_caption_similarity']:.2f} with S_tc, {gates['auc_weight']:.2f} with W^s*W^t"
    )
    print(
        f"\nmodels     {run}/checkpoints, {clip}/checkpoints\nnumbers    {run}/results, {run}/metrics.jsonl"
        f"\nplots      {run}/plots, {run}/results\nTensorBoard: .venv/bin/tensorboard --logdir {run}/tensorboard"
    )


if __name__ == "__main__":
    run_command(main)
