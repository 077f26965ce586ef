"""The numbers that show how well the gates find mismatched texts, against slow, obvious forms."""

import numpy as np
import pytest

from alip.data.score_table import SCORES, ScoreTable
from alip.data.shards import load_manifest
from alip.errors import UserError
from alip.eval.gates.labels import (
    matched_auc,
    matched_aucs,
    mismatch_label,
    read_mismatch_labels,
    summarize,
)
from tests.helpers.score_tables import made_up_scores, write_made_up_table


def slow_auc(scores, is_mismatched):
    """Every matched sample against every mismatched one."""
    matched, mismatched = scores[~is_mismatched], scores[is_mismatched]
    return np.mean([(a > b) + 0.5 * (a == b) for a in matched for b in mismatched])


@pytest.mark.parametrize("levels", [3, 10_000])
def test_auc_equals_all_pairs(levels):
    generator = np.random.default_rng(levels)
    for _ in range(5):
        scores = generator.integers(0, levels, 57) / levels  # few levels: many ties
        is_mismatched = generator.random(57) < 0.4
        assert matched_auc(scores, is_mismatched) == pytest.approx(slow_auc(scores, is_mismatched), abs=1e-12)


def test_auc_of_perfect_inverse_and_one_sided_labels():
    is_mismatched = np.array([True, True, False, False])
    assert matched_auc(np.array([0.1, 0.2, 0.3, 0.4]), is_mismatched) == 1
    assert matched_auc(np.array([0.4, 0.3, 0.2, 0.1]), is_mismatched) == 0
    assert np.isnan(matched_auc(np.array([0.4, 0.3]), np.array([False, False])))
    assert np.isnan(matched_auc(np.array([0.4, 0.3]), np.array([True, True])))


def test_summary_of_both_labels_and_of_one():
    similarity, weight = np.array([0.1, 0.9, 0.5]), np.array([0.25, 1.0, 0.5])
    summary = summarize(similarity, weight, np.array([True, False, False]))
    assert summary["mean_weight_mismatched"] == 0.25 and summary["mean_weight_matched"] == 0.75
    assert summary["auc_weight"] == 1 and summary["auc_text_caption_similarity"] == 1 and summary["samples"] == 3
    assert np.isnan(summarize(similarity, weight, np.array([False] * 3))["mean_weight_mismatched"])


def test_aucs_of_every_score_in_a_table(shards, tmp_path):
    path = write_made_up_table(shards, tmp_path / "gates.parquet", label="odd")
    odd, scores = np.arange(230) % 2 == 1, made_up_scores(np.arange(230))
    with ScoreTable(path) as table:
        assert matched_aucs(table, "is_mismatched") == {name: matched_auc(scores[name], odd) for name in SCORES}


def test_labels_are_read_in_the_order_of_the_samples(shards):
    manifest = load_manifest(shards)
    labels = read_mismatch_labels(manifest, "odd")
    assert labels.dtype == bool and labels.tolist() == [bool(i % 2) for i in range(manifest.samples)]
    with pytest.raises(UserError, match="0000000 has no true or false in 'no_such'"):
        read_mismatch_labels(manifest, "no_such")


@pytest.mark.parametrize("metadata, message", [("{", "not valid JSON"), ("[1]", "a JSON list, not an object")])
def test_damaged_metadata_is_named(metadata, message):
    with pytest.raises(UserError, match=f"set: the metadata of sample k1: .*{message}"):
        mismatch_label({"key": "k1", "metadata": metadata}, "odd", "set")
