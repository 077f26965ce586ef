"""What the gates make of a dataset: similarities and weights of every sample, and how well they find mismatched texts.

    python -m alip.eval.gates --checkpoint RUN --data DIR/NAME --output scores.parquet [--mismatch-column COLUMN]

Sorted by `sample_text_weight` (W^s·W^t), the table tells which raw texts to look at or to leave out. With
--mismatch-column, a field of the sources' JSON that is true where a raw text does not match its image, it also prints
how well the gates find those.

The images are taken without augmentation and the history as the run left it, so the scores are those of one finished
model for all samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from tqdm import tqdm

from alip import distributed
from alip.checkpoint.load import load_model
from alip.data.loader import create_loader
from alip.data.shards import Manifest, load_manifest, read_texts
from alip.errors import UserError, run_command
from alip.eval.gates.labels import read_mismatch_labels, summarize
from alip.files import atomic_path
from alip.loss import gate_weights
from alip.model.weights import find_checkpoint, read_file

SCORES = (
    "text_caption_similarity",
    "image_text_similarity",
    "image_caption_similarity",
    "sample_weight",
    "text_weight",
    "caption_weight",
)


@torch.inference_mode()
def score_samples(
    model: nn.Module,
    history: torch.Tensor,
    manifest: Manifest,
    *,
    gamma_sample: float = 2.0,
    gamma_pair: float = 2.0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    threads: int = 2,
) -> dict[str, np.ndarray]:
    """Similarities and weights of every sample, in the manifest's order: {name in SCORES: (samples,) float32}."""
    loader = create_loader(
        manifest,
        batch_size,
        **model.input_format,
        world=distributed.World(device=torch.device(device)),
        threads=threads,
        augmentation=None,
        shuffle=False,
        drop_last=False,
    )
    model = model.to(device).eval()
    history = history.to(device)
    scores = {name: np.zeros(manifest.samples, dtype=np.float32) for name in SCORES}
    for batch in tqdm(loader.epoch(0), total=loader.batches_per_epoch, desc="gates", unit="batch", disable=None):
        image, text, caption, _ = model(batch.image, batch.text_tokens, batch.caption_tokens)
        similarities = [(a * b).sum(1) for a, b in ((text, caption), (image, text), (image, caption))]
        weights = gate_weights(*similarities, history, gamma_sample, gamma_pair)
        for name, value in zip(SCORES, (*similarities, *weights), strict=True):
            scores[name][batch.index.numpy()] = value.float().cpu().numpy()
    return scores


def write_scores(path: Path, manifest: Manifest, scores: dict[str, np.ndarray]) -> None:
    """Writes a Parquet table, row i = sample i: key, raw text, caption, all scores, `sample_text_weight` = W^s·W^t."""
    rows = list(read_texts(manifest))
    table = pa.table(
        {
            "key": [row["key"] for row in rows],
            "text": [row["text"] for row in rows],
            "caption": [row["caption"] for row in rows],
            **scores,
            "sample_text_weight": scores["sample_weight"] * scores["text_weight"],
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_history(checkpoint: str | Path) -> torch.Tensor:
    """(3,) the gates' history of a training checkpoint, in the order tc, xt, xc."""
    path = find_checkpoint(checkpoint)
    content = read_file(path)
    try:
        return content["loss"]["history"]
    except (KeyError, TypeError):
        raise UserError(f"{path}: holds no gate history; name a run folder or checkpoint of train.py") from None


def main() -> None:
    """Scores, writes the table, and compares with the labels if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="run folder or checkpoint file of train.py")
    parser.add_argument("--data", required=True, help="shards, DIR/NAME")
    parser.add_argument("--output", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--mismatch-column", metavar="COLUMN", help="JSON field of the sources, true where mismatched")
    parser.add_argument("--gamma-sample", type=float, default=2.0)
    parser.add_argument("--gamma-pair", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = parser.parse_args()

    world = distributed.start(arguments.device)
    manifest = load_manifest(arguments.data)
    column = arguments.mismatch_column
    is_mismatched = read_mismatch_labels(manifest, column) if column else None
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
    if is_mismatched is not None:
        weight = scores["sample_weight"] * scores["text_weight"]
        summary = summarize(scores["text_caption_similarity"], weight, is_mismatched)
        arguments.output.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
        print(
            f"mean W_s*W_t: matched texts {summary['mean_weight_matched']:.3f}, mismatched texts "
            f"{summary['mean_weight_mismatched']:.3f}; AUC of S_tc {summary['auc_text_caption_similarity']:.3f}, "
            f"of W_s*W_t {summary['auc_weight']:.3f}"
        )


if __name__ == "__main__":
    run_command(main)
