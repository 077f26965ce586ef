"""Labels of mismatched raw texts, where they are known: reading them, and how well scores separate them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alip.data.score_table import CAPTION_INDEX, SCORES, ScoreTable
from alip.data.shards import Manifest, read_texts, row_metadata
from alip.errors import UserError

RAW_TEXT_LABEL = "is_mismatched"  # the column of a table that is about raw texts, not captions


def read_mismatch_labels(manifest: Manifest, column: str) -> np.ndarray:
    """(samples,) booleans from a field of the sources' own JSON that is true where the raw text is mismatched.

    Raises UserError when a sample lacks the field or holds something other than true, false, 0 or 1.
    """
    labels = np.zeros(manifest.samples, dtype=bool)
    for index, row in enumerate(read_texts(manifest)):
        labels[index] = mismatch_label(row, column, manifest.name)
    return labels


def mismatch_label(row: dict, column: str, name: str) -> bool:
    """The label in one sidecar row of dataset `name`; UserError as above."""
    value = row_metadata(row, name).get(column)
    if value not in (True, False):
        raise UserError(
            f"{name}: sample {row['key']} has no true or false in {column!r} (found {value!r}); "
            "name a field of the source's JSON that every sample has"
        )
    return bool(value)


def matched_auc(scores: np.ndarray, is_mismatched: np.ndarray) -> float:
    """Area under the ROC curve of "a higher score means matched"; NaN when all samples have the same label.

    scores: (n,) numbers; is_mismatched: (n,) booleans.
    """
    from sklearn.metrics import roc_auc_score  # takes a second to import: not for every user of this module

    is_mismatched = np.asarray(is_mismatched, dtype=bool)
    if is_mismatched.all() or not is_mismatched.any():
        return float("nan")
    return float(roc_auc_score(~is_mismatched, scores))


def labelled_scores(table: ScoreTable, label: str, names: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A label, (n,) booleans, and some scores, (n,) each, of what the label is about.

    Captions: the table's rows. Raw texts (`is_mismatched`): the samples, each with its highest scores over its
    captions, as one caption that agrees with a raw text is enough; others may name the class alone. NaN only if all
    are.
    """
    columns = {name: table.column(name) for name in names}
    found = table.column(label).astype(bool)
    if label != RAW_TEXT_LABEL or CAPTION_INDEX not in table.columns:
        return found, columns
    first = np.flatnonzero(table.column(CAPTION_INDEX) == 0)
    return found[first], best_of_captions(columns, first)


def best_of_captions(columns: dict[str, np.ndarray], first: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of captions, (rows,), as those of their samples, (samples,): the highest. first: each one's first row."""
    if not len(first):
        return columns
    return {name: np.fmax.reduceat(values, first) for name, values in columns.items()}


def matched_aucs(table: ScoreTable, label: str) -> dict[str, float | None]:
    """{score: `matched_auc`} for every score of a table against one of its labels, see `labelled_scores`; None where
    there is no answer."""
    is_mismatched, columns = labelled_scores(table, label, SCORES)
    lowest = np.finfo(np.float32).min
    aucs = {name: matched_auc(np.nan_to_num(column, nan=lowest), is_mismatched) for name, column in columns.items()}
    return {name: None if np.isnan(value) else value for name, value in aucs.items()}


def summarize(similarity: np.ndarray, weight: np.ndarray, is_mismatched: np.ndarray) -> dict[str, float]:
    """How matched and mismatched raw texts differ.

    similarity, weight: (n,) S_tc and W^s·W^t; is_mismatched: (n,) booleans. Gives both AUCs (see `matched_auc`) as
    auc_text_caption_similarity and auc_weight, and the mean weight for each label, NaN for a label that is absent.
    """
    return {
        "auc_text_caption_similarity": matched_auc(similarity, is_mismatched),
        "auc_weight": matched_auc(weight, is_mismatched),
        "mean_weight_matched": _mean(weight[~is_mismatched]),
        "mean_weight_mismatched": _mean(weight[is_mismatched]),
        "samples": len(is_mismatched),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
