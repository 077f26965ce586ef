"""Prints what the quickstart measured: the model beside raw pixels and chance, the gates, and where everything is.

python scripts/demo/summary.py --run runs/quickstart
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from classes import CLASSES
from unpack import SPLITS

from alip.errors import UserError, run_command
from alip.eval import results

ROW = "{:<28}{:>8}{:>8}{:>8}{:>8}   {:>10}"


def read_json(path: Path) -> dict:
    """A JSON file that an earlier step of the quickstart wrote."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `bash scripts/quickstart.sh` again to make it")
    return json.loads(path.read_text())


def rows_of(split: str, run: Path) -> list[str]:
    """The lines of one benchmark: the model, raw pixels, chance."""
    name = SPLITS[split]
    measured = {
        (entry["task"], entry["dataset"]): entry["numbers"]
        for entry in results.load(run / "results")  # of several checkpoints the one measured last
        if entry["protocol"] == "standard" and entry.get("benchmark", name) == name and not entry.get("given")
    }
    try:
        retrieval, zeroshot = measured["retrieval", name], measured["zeroshot", name]
    except KeyError as missing:
        raise UserError(f"{run}/results: holds no {missing} result; run the quickstart again") from None
    pixels = read_json(run / "results/pixels.json")[name]
    pairs = int(retrieval["images"])
    directions = ("text_to_image", "image_to_text")
    recalls = [f"{direction}_R@{k}" for direction in directions for k in (1, 5)]

    def row(title: str, values: list[float], accuracy: float) -> str:
        return ROW.format(title, *(f"{value:.1f}" for value in values), f"{accuracy:.1f}")

    chance = [100 * k / pairs for _ in directions for k in (1, 5)]
    lines = [
        ROW.format(f"{split}, {pairs:,} pairs", "", "", "", "", ""),
        row("  this model", [retrieval[key] for key in recalls], zeroshot["top1"]),
        row("  nearest pixels, true names", [pixels[key] for key in recalls], pixels["top1"]),
    ]
    return [*lines, ROW.format("  chance", *(f"{value:.2f}" for value in chance), f"{100 / len(CLASSES):.1f}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    run = parser.parse_args().run

    gates = read_json(run / "results/gates.json")
    print(ROW.format("", "text → image", "", "image → text", "", ""))
    print(ROW.format("in %", "R@1", "R@5", "R@1", "R@5", f"{len(CLASSES)} classes"))
    for split in SPLITS:
        print("\n".join(rows_of(split, run)))
    print(
        f"\ngates, over all training samples: mean W^s*W^t {gates['mean_weight_matched']:.2f} for matched raw texts, "
        f"{gates['mean_weight_mismatched']:.2f} for mismatched ones;\n"
        f"AUC {gates['auc_text_caption_similarity']:.2f} with S_tc, {gates['auc_weight']:.2f} with W^s*W^t"
    )
    print(
        f"\nmodel      {run}/checkpoints\nnumbers    {run}/results, {run}/metrics.jsonl"
        f"\nplots      {run}/plots, {run}/results\nTensorBoard: .venv/bin/tensorboard --logdir {run}/tensorboard"
    )


if __name__ == "__main__":
    run_command(main)
