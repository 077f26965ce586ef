from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alip.distributed import World
from alip.train.gate_metrics import MismatchMetrics


def result(similarity, sample_weight, text_weight):
    return SimpleNamespace(
        outcome=SimpleNamespace(
            text_caption_similarity=torch.tensor(similarity),
            sample_weight=torch.tensor(sample_weight),
            text_weight=torch.tensor(text_weight),
        )
    )


def test_report_uses_each_steps_own_values():
    metrics = MismatchMetrics(np.array([False, True, False, True]))
    metrics.add(torch.tensor([3, 0]), result([0.1, 0.9], [0.5, 1.0], [1.0, 1.0]))
    saved = metrics.state()
    metrics.add(torch.tensor([2, 1]), result([0.3, 0.2], [0.5, 1.0], [0.5, 1.0]))
    expected = {
        "auc_text_caption_similarity": 1.0,  # 0.9, 0.3 above 0.1, 0.2
        "auc_weight": 0.375,  # matched 1, 0.25 against mismatched 0.5, 1: one pair won, one even, two lost
        "mean_weight_matched": 0.625,
        "mean_weight_mismatched": 0.75,
        "scored_samples": 4,
    }
    assert metrics.report(World()) == pytest.approx(expected)
    assert metrics.state()["index"].numel() == 0

    metrics.load([saved], torch.device("cpu"))
    metrics.add(torch.tensor([2, 1]), result([0.3, 0.2], [0.5, 1.0], [0.5, 1.0]))
    assert metrics.report(World()) == pytest.approx(expected)


def test_values_that_are_not_finite_do_not_count():
    metrics = MismatchMetrics(np.array([False, True, False]))
    metrics.add(torch.tensor([0, 1, 2]), result([0.5, 0.1, float("nan")], [1.0, 1.0, float("nan")], [1.0, 1.0, 1.0]))
    assert metrics.report(World())["scored_samples"] == 2
