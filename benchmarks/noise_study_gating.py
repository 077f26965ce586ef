"""The noise study's losses whose weights do not come from the run's own gates: what limits what gating can give."""

from __future__ import annotations

import torch
from torch import Tensor

from alip.infonce import Collectives, bi_path_contrast
from alip.loss import AdaptiveContrastiveLoss, LossOutput, gate_weights


class GivenWeights(AdaptiveContrastiveLoss):
    """The bi-path loss with one constant weight for each sample and path.

    text_path, caption_path: (samples,) weights of all training samples. `index` must hold the numbers of the batch's
    samples at every forward.
    """

    def __init__(self, text_path: Tensor, caption_path: Tensor, **settings):
        super().__init__(**settings)
        self.text_path, self.caption_path = text_path.float(), caption_path.float()
        self.index = torch.empty(0, dtype=torch.long)

    def forward(self, image_features: Tensor, text_features: Tensor, caption_features: Tensor, logit_scale: Tensor):
        """As the base class's, with the given weights; a weight of a path is reported as W^t or W^c, and W^s as 1."""
        weights = self.text_path[self.index], self.caption_path[self.index]
        return _contrast(self, image_features, text_features, caption_features, logit_scale, weights)


class SampleWeightOnTextsOnly(AdaptiveContrastiveLoss):
    """ALIP with the caption path weighted by W^c alone: a good caption keeps its weight where the raw text is bad."""

    def forward(self, image_features: Tensor, text_features: Tensor, caption_features: Tensor, logit_scale: Tensor):
        """As the base class's; W^s·W^t is reported as W^t, and W^s as 1."""
        return _contrast(self, image_features, text_features, caption_features, logit_scale, None)


def _contrast(
    loss: AdaptiveContrastiveLoss,
    image: Tensor,
    text: Tensor,
    caption: Tensor,
    scale: Tensor,
    weights: tuple[Tensor, Tensor] | None,
) -> LossOutput:
    """weights: of the text path and the caption path; None: W^s·W^t and W^c of the loss's own gates."""
    with torch.autocast(image.device.type, enabled=False):
        x, t, c, scale = (tensor.float() for tensor in (image, text, caption, scale))
        with torch.no_grad():
            S = [(t * c).sum(1), (x * t).sum(1), (x * c).sum(1)]
            history = loss._update_history(torch.stack([one.double().mean() for one in S]))
            if weights is None:
                W_s, W_t, W_c = gate_weights(*S, history, loss.gamma_sample, loss.gamma_pair)
                weights = W_s * W_t, W_c
        one_process = Collectives(), [len(x)]
        text_loss, caption_loss = bi_path_contrast(x, t, c, scale.reshape(()), *weights, *one_process)
    return LossOutput(text_loss + caption_loss, text_loss, caption_loss, torch.ones_like(S[0]), *weights, *S)


def frozen_gates(scores: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Both gates over a finished run's similarities of all samples, their means as the history: W^s·W^t, W^s·W^c."""
    S = [scores[name] for name in ("text_caption_similarity", "image_text_similarity", "image_caption_similarity")]
    W_s, W_t, W_c = gate_weights(*S, torch.stack([one.mean() for one in S]))
    return W_s * W_t, W_s * W_c
