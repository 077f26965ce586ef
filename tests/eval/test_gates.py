"""The numbers that say how well the gates find wrong texts, against slow, obvious forms."""

import numpy as np
import pytest

from alip.eval.gates import separation_auc, summarize


def slow_auc(scores, is_wrong):
    """Every right sample against every wrong one."""
    right, wrong = scores[~is_wrong], scores[is_wrong]
    return np.mean([(a > b) + 0.5 * (a == b) for a in right for b in wrong])


@pytest.mark.parametrize("levels", [3, 10_000])
def test_auc_equals_all_pairs(levels):
    generator = np.random.default_rng(levels)
    for _ in range(5):
        scores = generator.integers(0, levels, 57) / levels  # few levels: many ties
        is_wrong = generator.random(57) < 0.4
        assert separation_auc(scores, is_wrong) == pytest.approx(slow_auc(scores, is_wrong), abs=1e-12)


def test_auc_of_perfect_inverse_and_one_sided_sets():
    is_wrong = np.array([True, True, False, False])
    assert separation_auc(np.array([0.1, 0.2, 0.3, 0.4]), is_wrong) == 1
    assert separation_auc(np.array([0.4, 0.3, 0.2, 0.1]), is_wrong) == 0
    assert np.isnan(separation_auc(np.array([0.4, 0.3]), np.array([False, False])))


def test_summary_of_both_kinds_and_of_one():
    similarity, weight = np.array([0.1, 0.9, 0.5]), np.array([0.25, 1.0, 0.5])
    summary = summarize(similarity, weight, np.array([True, False, False]))
    assert summary["mean_weight_wrong"] == 0.25 and summary["mean_weight_right"] == 0.75
    assert summary["auc_weight"] == 1 and summary["auc_text_caption_similarity"] == 1 and summary["samples"] == 3
    assert np.isnan(summarize(similarity, weight, np.array([False] * 3))["mean_weight_wrong"])
