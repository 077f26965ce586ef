"""What the gates make of a dataset: similarities and weights of every sample, and how well they find mismatched texts.

    python -m alip.eval.gates --checkpoint RUN --data DIR/NAME --output scores.parquet [--truth COLUMN]

Sorted by `sample_text_weight` (W^s·W^t), the table tells which raw texts to look at or to leave out. With --truth, a
field of the sources' JSON that is true where a raw text is wrong, it also prints how well the gates find those.

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


def separation_auc(scores: np.ndarray, is_wrong: np.ndarray) -> float:
    """The chance that a right sample scores higher than a wrong one, ties counted half (the area under the ROC curve).

    scores: (n,) numbers; is_wrong: (n,) booleans. NaN when there are only right or only wrong samples.
    """
    is_wrong = np.asarray(is_wrong, dtype=bool)
    _, place, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    ranks = (last_rank - (counts - 1) / 2)[place]  # equal scores share their mean rank
    right, wrong = int((~is_wrong).sum()), int(is_wrong.sum())
    if right == 0 or wrong == 0:
        return float("nan")
    return float((ranks[~is_wrong].sum() - right * (right + 1) / 2) / (right * wrong))


def read_truth(manifest: Manifest, column: str) -> np.ndarray:
    """(samples,) booleans from a field of the sources' own JSON that says whether a raw text is wrong.

    Raises UserError when a sample lacks the field or holds something other than true, false, 0 or 1.
    """
    truth = np.zeros(manifest.samples, dtype=bool)
    for place, row in enumerate(read_texts(manifest)):
        value = json.loads(row["metadata"] or "{}").get(column)
        if value not in (True, False):
            raise UserError(
                f"{manifest.name}: sample {row['key']} has no true or false in {column!r} (found {value!r}); "
                "name a field of the source's JSON that every sample has"
            )
        truth[place] = value
    return truth


def summarize(similarity: np.ndarray, weight: np.ndarray, is_wrong: np.ndarray) -> dict[str, float]:
    """How right and wrong raw texts differ.

    similarity, weight, is_wrong: (n,) S_tc, W^s·W^t and the truth. Gives both AUCs (see `separation_auc`) as
    auc_text_caption_similarity and auc_weight, and the mean weight of each kind, NaN for a kind that is absent.
    """
    return {
        "auc_text_caption_similarity": separation_auc(similarity, is_wrong),
        "auc_weight": separation_auc(weight, is_wrong),
        "mean_weight_right": _mean(weight[~is_wrong]),
        "mean_weight_wrong": _mean(weight[is_wrong]),
        "samples": len(is_wrong),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


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
    preprocess = model.config["preprocess_cfg"]
    loader = create_loader(
        manifest,
        batch_size,
        image_size=model.image_size,
        mean=preprocess["mean"],
        std=preprocess["std"],
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
