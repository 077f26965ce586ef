"""The reference of the loss, checked by hand."""

from __future__ import annotations

import math

import torch

from tests.helpers.loss_reference import reference_step


def test_reference_by_hand():
    """Two samples on the unit circle, worked out with scalar arithmetic only."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.0, 1.0], [0.0, 1.0]])  # the first text belongs to the second image
    captions = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    step = reference_step(images, texts, captions, 10.0, [0.9, 0.5, 0.7], history_momentum=0.9)

    # S_tc = .8, 1; S_xt = 0, 1; S_xc = .6, 1; means .9, .5, .8
    H_tc, H_xt, H_xc = 0.9, 0.5, 0.9 * 0.7 + 0.1 * 0.8
    assert torch.allclose(step.history, torch.tensor([H_tc, H_xt, H_xc]))
    W_s, W_t, W_c = math.exp(2 * (0.8 - H_tc)), math.exp(2 * (0.0 - H_xt)), math.exp(2 * (0.6 - H_xc))
    for weight, first in zip((step.sample_weight, step.text_weight, step.caption_weight), (W_s, W_t, W_c)):
        assert torch.allclose(weight, torch.tensor([first, 1.0]).double())

    log, exp = math.log, math.exp
    # text logits [[0, 0], [10, 10]], caption logits [[6, 0], [8, 10]]
    text = (W_s * W_t * (log(2) + log(1 + exp(10))) / 2 + (log(2) + log(1 + exp(-10))) / 2) / 2
    first = (log(1 + exp(-6)) + log(1 + exp(2))) / 2
    second = (log(1 + exp(-2)) + log(1 + exp(-10))) / 2
    assert math.isclose(float(step.text_loss), text, rel_tol=1e-6)
    assert math.isclose(float(step.caption_loss), (W_s * W_c * first + second) / 2, rel_tol=1e-6)
