"""Prints what the quickstart measured: CLIP and ALIP beside raw pixels and chance, the gates, and where everything is.

    python scripts/demo/summary.py --run runs/quickstart [--clip runs/quickstart-clip]

Without --clip, CLIP's row is the recorded one of benchmarks/demo_seeds.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `import alip`, from anywhere

from classes import CLASSES
from recorded import CLIP, recorded_run
from unpack import SPLITS

from alip import files
from alip.command import CommandParser
from alip.errors import UserError, run_command
from alip.eval import results

ROW = "{:<30}{:>8}{:>8}{:>8}{:>8}   {:>10}"
RECALLS = [f"{direction}_R@{k}" for direction in ("text_to_image", "image_to_text") for k in (1, 5)]


def read_json(path: Path) -> dict:
    """A JSON file that an earlier step of the quickstart wrote."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `bash scripts/quickstart.sh` again to make it")
    return files.read_json(path)


def measured(run: Path, dataset: str) -> dict:
    """A run's numbers on one benchmark, retrieval and zero-shot; of several checkpoints the one measured last."""
    found = {
        entry["task"]: entry["numbers"]
        for entry in results.load(run / "results")
        if entry["protocol"] == "standard" and entry["dataset"] == dataset
        if entry.get("benchmark", dataset) == dataset and not entry.get("given")
    }
    try:
        return {**found["retrieval"], "top1": found["zeroshot"]["top1"]}
    except KeyError as missing:
        raise UserError(f"{run}/results: holds no {missing} result on {dataset}; run the quickstart again") from None


def rows_of(split: str, run: Path, clip: dict[str, dict]) -> list[str]:
    """The lines of one benchmark: CLIP, ALIP, raw pixels, chance. clip: {dataset: numbers}."""
    name = SPLITS[split]
    alip = measured(run, name)
    pairs = int(alip["images"])
    pixels = read_json(run / "results/pixels.json")[name]
    chance = [f"{100 * k / pairs:.2f}" for k in (1, 5, 1, 5)]
    return [
        ROW.format(f"{split}, {pairs:,} pairs", "", "", "", "", ""),
        _row("CLIP on the raw texts", clip[name]),
        _row("ALIP", alip),
        _row("nearest pixels, true names", pixels),
        ROW.format("  chance", *chance, f"{100 / len(CLASSES):.1f}"),
    ]


def _row(title: str, numbers: dict[str, float]) -> str:
    return ROW.format(f"  {title}", *(f"{numbers[key]:.1f}" for key in (*RECALLS, "top1")))


def clip_numbers(run: Path, clip: Path | None) -> tuple[dict[str, dict], str]:
    """{dataset: numbers} of CLIP on the raw texts, and what its row is worth, in words."""
    if clip is not None:
        return {name: measured(clip, name) for name in SPLITS.values()}, (
            "Both models saw the same samples in the same order; one seed."
        )
    recorded = recorded_run(CLIP)
    arguments = read_json(run / "run.json")["arguments"]
    epochs, batch_size = recorded["epochs"], recorded["batch_size"]
    same = (arguments["epochs"], arguments["batch_size"], arguments["seed"]) == (epochs, batch_size, recorded["seed"])
    seen = (
        "which saw the same samples in the same order"
        if same
        else f"{epochs} epochs in batches of {batch_size}: NOT those of this run of ALIP"
    )
    return recorded["numbers"], (
        f"CLIP's row is recorded: seed {recorded['seed']} of `python benchmarks/demo_seeds.py`,\n{seen}; "
        "CLIP=1 bash scripts/quickstart.sh trains it here."
    )


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="ALIP's run folder")
    parser.add_argument("--clip", type=Path, help="run folder of CLIP on the raw texts")
    arguments = parser.parse_args()
    run, clip = arguments.run, arguments.clip

    gates = read_json(run / "results/gates.json")
    numbers, note = clip_numbers(run, clip)
    print(ROW.format("", "text → image", "", "image → text", "", ""))
    print(ROW.format("in %", "R@1", "R@5", "R@1", "R@5", f"{len(CLASSES)} classes"))
    for split in SPLITS:
        print("\n".join(rows_of(split, run, numbers)))
    print(
        f"\n{note}\nNearest pixels is given the true name and class of every training image, which neither model sees."
        "\nMeans over seeds: docs/evidence.md"
    )
    print(
        f"\ngates, over all training samples, mean of {len(gates['checkpoints'])} checkpoints: W^s*W^t "
        f"{gates['mean_weight_matched']:.2f} for matched raw texts,\n{gates['mean_weight_mismatched']:.2f} for "
        "mismatched ones; "
        f"AUC {gates['auc_text_caption_similarity']:.2f} with S_tc, {gates['auc_weight']:.2f} with W^s*W^t"
    )
    models = ", ".join(f"{folder}/checkpoints" for folder in (run, clip) if folder)
    print(
        f"\nmodels     {models}\nnumbers    {run}/results, {run}/metrics.jsonl"
        f"\nplots      {run}/plots, {run}/results\nTensorBoard: .venv/bin/tensorboard --logdir {run}/tensorboard"
    )


if __name__ == "__main__":
    run_command(main)
