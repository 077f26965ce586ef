"""What the report page shows of a table: histograms and curves of all samples, and some samples with their images.

Two passes over the table, in memory of one row group and the chosen samples (and two columns for the curves).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from alip.build.images import ImageError, decode_image
from alip.data.order import uniform
from alip.data.recordio import RecordError, unpack
from alip.data.score_table import CAPTION_INDEX, LABELS, SCORES, ScoreTable
from alip.data.shards import Manifest
from alip.eval.gates.labels import labelled_scores
from alip.eval.html_page import script_json

RANDOM_SAMPLES = 2000
EXTREMES = 150  # of each end of each ranking
RANKINGS = ("text_caption_similarity", "sample_text_weight", "image_text_similarity", "image_caption_similarity")
TEXT_RANKINGS = RANKINGS[:3]  # of raw texts, not captions
BINS = 60
CURVE_POINTS = 400
LONGEST_TEXT = 300  # characters
SIDES = (128, 112, 96, 80, 64, 48)  # of thumbnails, in pixels: the largest that fits the page's size


def collect(
    table: ScoreTable,
    manifest: Manifest,
    *,
    random_samples: int = RANDOM_SAMPLES,
    extremes: int = EXTREMES,
    page_bytes: int = 18_000_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Plain values for the page.

    random_samples, extremes: how many samples with image; which ones depends on `seed` and the table alone.
    page_bytes: what the page may have without its program: the thumbnails take what the texts leave of it.
    """
    labels = [name for name in LABELS if name in table.columns]
    best = best_rows(table)
    chosen, is_random = choose_samples(table, random_samples, extremes, seed, best)
    rows = _rows(table, chosen, labels)
    if best is not None:
        rows["best"] = best[chosen].tolist()
    rows["random"] = is_random.tolist()
    rows["image"] = thumbnails(manifest, np.array(rows["index"]), page_bytes - len(script_json(rows)))
    return {
        "data": table.metadata["data"],
        "checkpoints": table.metadata["checkpoints"],
        "scores": list(SCORES),
        "labels": labels,
        "histograms": histograms(table, labels[0] if labels else None),
        "curves": {name: curves(table, name) for name in labels},
        "rows": rows,
        "random_samples": min(random_samples, table.rows),
    }


def best_rows(table: ScoreTable) -> np.ndarray | None:
    """Whether each row has the caption that agrees best with its sample's raw text (the first of equal ones), (rows,)
    booleans; None where samples have one caption."""
    if CAPTION_INDEX not in table.columns:
        return None
    values = np.nan_to_num(table.column("text_caption_similarity"), nan=-np.inf)
    first = np.flatnonzero(table.column(CAPTION_INDEX) == 0)
    sample = np.repeat(np.arange(len(first)), np.diff(first, append=len(values)))
    order = np.lexsort((np.arange(len(values)), -values, sample))
    best = np.zeros(len(values), dtype=bool)
    best[order[first]] = True
    return best


def choose_samples(
    table: ScoreTable, random_samples: int, extremes: int, seed: int, best: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of rows, ascending, and for each whether it is one of the random ones. (Row i is sample i, unless there
    is a row for each of several captions; then `best`, of `best_rows`, says which rows count for raw texts.)

    A random choice, and both ends of every ranking, equal scores at random. All of a dataset that is no larger.
    """
    if table.rows <= random_samples + 2 * len(RANKINGS) * extremes:
        return np.arange(table.rows), np.ones(table.rows, dtype=bool)
    random = _Smallest(random_samples)
    ends = {(name, sign): _Smallest(extremes) for name in RANKINGS for sign in (1, -1)}
    at = 0
    for batch in table.batches(RANKINGS):
        row = np.arange(at, at + len(batch[RANKINGS[0]]))
        at += len(row)
        tie = uniform(seed, 0, row, 0)
        random.add(tie, tie, row)
        for (name, sign), smallest in ends.items():
            values = sign * batch[name].astype(np.float64)
            if best is not None and name in TEXT_RANKINGS:
                values[~best[row]] = np.inf
            smallest.add(values, tie, row)
    chosen = np.unique(np.concatenate([random.index, *(one.index for one in ends.values())]))
    return chosen, np.isin(chosen, random.index)


class _Smallest:
    """The `count` smallest of a stream, by value and then by tie."""

    def __init__(self, count: int):
        self.count = count
        self.values, self.ties, self.index = np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64)

    def add(self, values: np.ndarray, ties: np.ndarray, index: np.ndarray) -> None:
        joined = [np.concatenate(pair) for pair in ((self.values, values), (self.ties, ties), (self.index, index))]
        order = np.lexsort((joined[1], joined[0]))[: self.count]
        self.values, self.ties, self.index = (one[order] for one in joined)


def _rows(table: ScoreTable, chosen: np.ndarray, labels: Sequence[str]) -> dict[str, list]:
    """Columns of the chosen rows."""
    names = ["index", "key", "shard", "record", "text", "caption", *SCORES, *labels]
    rows: dict[str, list] = {name: [] for name in names}
    at = 0
    for batch in table.batches(names):
        picked = np.isin(np.arange(at, at + len(batch["index"])), chosen)
        at += len(picked)
        if not picked.any():
            continue
        for name in names:
            values = batch[name][picked]
            if values.dtype.kind == "f":
                rows[name] += [_number(value) for value in values.tolist()]
            elif name in ("key", "text", "caption"):
                rows[name] += [_short(value) for value in values.tolist()]
            else:
                rows[name] += values.tolist()
    return rows


def _number(value: float) -> float | None:
    """Four digits are enough to look at; JSON has no NaN."""
    return round(value, 4) if np.isfinite(value) else None


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def histograms(table: ScoreTable, label: str | None) -> dict[str, dict[str, list]]:
    """{score: edges, and counts of all samples; with a label, of the matched and the mismatched ones}."""
    ranges = {name: table.value_range(name) for name in SCORES}
    edges = {
        name: np.linspace(low, high if high > low else low + 1e-6, BINS + 1) for name, (low, high) in ranges.items()
    }
    counts = {name: np.zeros((2, BINS), dtype=np.int64) for name in SCORES}
    for batch in table.batches([*SCORES, *([label] if label else [])]):
        is_mismatched = batch[label].astype(bool) if label else np.zeros(len(batch[SCORES[0]]), dtype=bool)
        for name in SCORES:
            for row, part in enumerate((~is_mismatched, is_mismatched)):
                counts[name][row] += np.histogram(batch[name][part].astype(np.float64), edges[name])[0]
    found = {}
    for name in SCORES:
        groups = {"matched": counts[name][0], "mismatched": counts[name][1]} if label else {"all": counts[name][0]}
        found[name] = {"edges": edges[name].tolist(), **{group: one.tolist() for group, one in groups.items()}}
    return found


def curves(table: ScoreTable, label: str) -> dict[str, Any]:
    """ROC and precision-recall of finding what is mismatched by low scores, in percent; {} if all have one label. Of
    what there is one score: see `labelled_scores`."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    is_mismatched, columns = labelled_scores(table, label, SCORES)
    if is_mismatched.all() or not is_mismatched.any():
        return {}
    found = {}
    for name in SCORES:
        values = np.nan_to_num(-columns[name], nan=np.finfo(np.float32).max)  # what has no score is distrusted
        false_positive, true_positive, _ = roc_curve(is_mismatched, values)
        precision, recall, _ = precision_recall_curve(is_mismatched, values)
        found[name] = {
            "auc": float(auc(false_positive, true_positive)),
            "average_precision": float(average_precision_score(is_mismatched, values)),
            "roc": _thin(false_positive, true_positive),
            "precision_recall": _thin(recall[::-1], precision[::-1]),
        }
    return {"fraction": float(is_mismatched.mean()), "scores": found}


def _thin(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    """Some points of a curve, at even steps of x, the ends included."""
    steps = np.searchsorted(x, np.linspace(x[0], x[-1], CURVE_POINTS), side="right") - 1
    at = np.unique([0, *steps, len(x) - 1])
    return [np.round(100 * one[at], 2).tolist() for one in (x, y)]


def thumbnails(manifest: Manifest, chosen: np.ndarray, total_bytes: int) -> list[str]:
    """JPEGs of the chosen samples in base64, all of one size, within total_bytes; "" where an image is broken."""
    probe = chosen[:: max(1, len(chosen) // 50)]
    for side in SIDES:
        sizes = [len(one) for one in _encode(manifest, probe, side)]
        if sum(sizes) / len(sizes) * len(chosen) <= 0.9 * total_bytes or side == SIDES[-1]:
            break
    found, spent = [], 0
    for one in _encode(manifest, chosen, side):
        spent += len(one)
        found.append(one if spent <= total_bytes else "")
    return found


def _encode(manifest: Manifest, chosen: np.ndarray, side: int) -> list[str]:
    encoded = []
    shards = np.searchsorted(manifest.starts, chosen, side="right") - 1
    for shard in np.unique(shards).tolist():
        with manifest.open_shard(shard) as reader:
            for index in chosen[shards == shard].tolist():
                try:
                    image = decode_image(unpack(reader[index - int(manifest.starts[shard])])[1], short_side=side)
                except (ImageError, RecordError):
                    encoded.append("")
                    continue
                encoded.append(_jpeg(image, side))
    return encoded


def _jpeg(image: Image.Image, side: int) -> str:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=72, optimize=True)
    return base64.b64encode(out.getvalue()).decode("ascii")
