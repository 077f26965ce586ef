"""Scores every sample of a data set with a trained model and its gates.

    python -m alip.gates --checkpoint RUN --data DIR/NAME --output scores.parquet [--truth COLUMN]

Sorted by `sample_text_weight` (W^s·W^t), the table tells which raw texts to look at or to leave out. With --truth, a
field of the sources' JSON that is true where a raw text is wrong, it also prints how well the gates find those.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from alip import distributed
from alip.checkpoint import find_checkpoint, load_model
from alip.data.shards import load_manifest
from alip.errors import UserError, run_command
from alip.eval.gates import read_truth, score_samples, summarize, write_scores
from alip.weights import read_file


def read_history(checkpoint: str | Path) -> torch.Tensor:
    """(3,) the gates' history of a training checkpoint, in the order tc, xt, xc."""
    path = find_checkpoint(checkpoint)
    content = read_file(path)
    try:
        return content["loss"]["history"]
    except (KeyError, TypeError):
        raise UserError(f"{path}: holds no gate history; name a run folder or checkpoint of train.py") from None


def main() -> None:
    """Scores, writes the table, and compares with the truth if it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="run folder or checkpoint file of train.py")
    parser.add_argument("--data", required=True, help="shards, DIR/NAME")
    parser.add_argument("--output", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--truth", metavar="COLUMN", help="JSON field of the sources, true where the raw text is wrong")
    parser.add_argument("--gamma-sample", type=float, default=2.0)
    parser.add_argument("--gamma-pair", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = parser.parse_args()

    world = distributed.start(arguments.device)
    manifest = load_manifest(arguments.data)
    truth = read_truth(manifest, arguments.truth) if arguments.truth else None
    scores = score_samples(
        load_model(arguments.checkpoint),
        read_history(arguments.checkpoint),
        manifest,
        gamma_sample=arguments.gamma_sample,
        gamma_pair=arguments.gamma_pair,
        batch_size=arguments.batch_size,
        device=world.device,
    )
    write_scores(arguments.output, manifest, scores)
    print(f"{manifest.samples} samples scored: {arguments.output}")
    if truth is not None:
        weight = scores["sample_weight"] * scores["text_weight"]
        summary = summarize(scores["text_caption_similarity"], weight, truth)
        arguments.output.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
        print(
            f"mean W_s*W_t: right texts {summary['mean_weight_right']:.3f}, wrong texts "
            f"{summary['mean_weight_wrong']:.3f}; AUC of S_tc {summary['auc_text_caption_similarity']:.3f}, "
            f"of W_s*W_t {summary['auc_weight']:.3f}"
        )


if __name__ == "__main__":
    run_command(main)
