"""ALIP's objective: two gates that compare the raw text with the synthetic caption, and the adaptive contrastive loss.

Equation numbers are those of the paper (arXiv 2308.08428). A batch of N samples has L2-normalised features of image x,
raw text t and synthetic caption c:

    S_tc = t·c,  S_xt = x·t,  S_xc = x·c                                      one similarity per sample
    H ← m·H + (1 − m)·mean(S)                                                 eq. 1, 3: history, one each for tc, xt, xc
    W_s = exp((S_tc − H_tc)·γ_s)  where S_tc <= H_tc, else 1                  eq. 2: language consistency gate
    W_t = exp((S_xt − H_xt)·γ_p), W_c = exp((S_xc − H_xc)·γ_p)                eq. 4: description consistency gate,
          where W_s < 1, else 1                                                      not capped: may exceed 1
    L = Σ over both paths of the symmetric InfoNCE, sample i weighted         eq. 5, 6
        with W_s·W_t (image and text) or W_s·W_c (image and caption)

Where the arithmetic departs from the paper's text, it follows the authors' code: the loss is the mean over the global
batch of w·(CE_image + CE_text)/2 per path, where the paper writes a sum without the half (a constant factor of 2N); and
H is updated with the current batch before it is used. Weights are constants for the gradient.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alip.infonce import Collectives, bi_path_contrast

_INPUTS = ("image_features", "text_features", "caption_features", "logit_scale")
# Settings by their names before version 0.2; they still work, with a warning, for one version.
_RENAMED = {
    "momentum": "history_momentum",
    "initial_similarity": "history_init",
    "block_size": "chunk_size",
    "keep_bytes": "logits_cache_bytes",
}


@dataclass(frozen=True)
class LossOutput:
    """The result of one step. The losses are scalars over the global batch, the same on every rank; `loss` is the sum
    of the two paths, to be differentiated. The rest are (B,) tensors of this rank's samples, detached."""

    loss: Tensor
    text_loss: Tensor
    caption_loss: Tensor
    sample_weight: Tensor
    text_weight: Tensor
    caption_weight: Tensor
    text_caption_similarity: Tensor
    image_text_similarity: Tensor
    image_caption_similarity: Tensor


def gate_weights(
    S_tc: Tensor,
    S_xt: Tensor,
    S_xc: Tensor,
    history: Tensor,
    gamma_sample: float = 2.0,
    gamma_pair: float = 2.0,
    use_sample_weight: bool = True,
    use_text_weight: bool = True,
    use_caption_weight: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Equations 2 and 4: similarities (B,) and the history (3,) of tc, xt, xc → W_s, W_t, W_c, (B,) each.

    A weight that is switched off is 1. The description gate depends on S_tc even where W_s itself is switched off, so
    that each switch removes one weight and nothing else (the paper's ablation rows).
    """
    H_tc, H_xt, H_xc = history.to(S_tc.dtype).unbind()
    one = torch.ones_like(S_tc)
    W_s = torch.where(S_tc <= H_tc, torch.exp((S_tc - H_tc) * gamma_sample), one)
    gated = W_s < 1
    W_t = torch.where(gated, torch.exp((S_xt - H_xt) * gamma_pair), one)
    W_c = torch.where(gated, torch.exp((S_xc - H_xc) * gamma_pair), one)
    return (
        W_s if use_sample_weight else one,
        W_t if use_text_weight else one,
        W_c if use_caption_weight else one,
    )


# Which paths an objective trains: image and raw text, image and caption. The last two are CLIP: one path, no gates.
OBJECTIVES = {"alip": (True, True), "clip-text": (True, False), "clip-caption": (False, True)}


class AdaptiveContrastiveLoss(nn.Module):
    """The bi-path contrastive loss with both gates, in chunks, for one process or many.

    gamma_sample, gamma_pair: γ_s and γ_p. history_momentum: m. history_init: the starting value of the three
        histories; 1, as released, gates every sample for the first 300 to 500 steps, a hidden warm-up; None starts
        from the first batch's own means.
    use_sample_weight, use_text_weight, use_caption_weight: the paper's ablation; all off is the plain bi-path loss.
    objective: "alip", or CLIP on one of the two texts, for comparison under equal conditions: "clip-text" (raw texts),
        "clip-caption". All weights are then 1 and the other path's loss 0; similarities and history are reported alike.
    chunk_size: side of the chunks of logits, of which three are in memory at a time: 12·chunk_size² bytes. Larger
        chunks mean fewer, longer kernels; smaller ones stay in the cache. None: 1024 on a CPU, 2048 to 8192 on a GPU
        by its memory.
    logits_cache_bytes: at most this many bytes of logits are kept from the forward for the backward pass, which
        recomputes the others: a fixed amount of memory that saves a quarter of the products while everything fits (up
        to N = 2896 alone, up to 8192 with 1024 rows on this rank), and fewer beyond. 0 keeps none.
    process_group: the ranks that share one global batch; None is the default group. The loss is distributed whenever
        torch.distributed is initialised.
    check_finite: raise FloatingPointError when an input holds a NaN or an infinity. This costs a norm per row and one
        read by the host per step.
    even_batches: promise that every rank has the same number of samples, so that no host needs to read the other
        ranks' counts. With check_finite=False the host then never waits for the device.

    The buffer `history` (3,) holds H_tc, H_xt, H_xc in fp32, the same on every rank; NaN means "no batch yet". It stays
    fp32 where a module around it is cast: in bf16 a step of 1 − m would round to nothing. It is updated at each forward
    in training mode, never in eval mode. A mean that is not finite never enters it.

    Ranks. Each computes the rows of its own images. Gradients are scaled so that their *mean* over the ranks, as
    DistributedDataParallel computes it, is the gradient of one process with the whole batch, for the parameters behind
    the features and for logit_scale alike. So on leaf tensors, `features.grad` is world_size times the complete
    gradient of this rank's rows (other ranks' logits included), and `logit_scale.grad` is world_size times the
    contribution of this rank's images. The number of samples may differ by rank, and may be 0.

    Precision. Everything is computed in fp32 (fp64 if the image features are) regardless of autocast, sums over chunks
    in fp64. Matrix products are fp32 even where the process allows TF32 or bf16 for them, in which a logit of 100 is
    off by 2e-3 or more; they are a hundredth of a step's work (docs/performance.md).

    Raises ValueError for settings out of range, TypeError for unknown ones.
    """

    def __init__(
        self,
        gamma_sample: float = 2.0,
        gamma_pair: float = 2.0,
        history_momentum: float = 0.99,
        history_init: float | None = 1.0,
        use_sample_weight: bool = True,
        use_text_weight: bool = True,
        use_caption_weight: bool = True,
        chunk_size: int | None = None,
        logits_cache_bytes: int = 48 << 20,
        process_group: dist.ProcessGroup | None = None,
        check_finite: bool = True,
        even_batches: bool = False,
        objective: str = "alip",
        **renamed: Any,
    ):
        if renamed:
            settings = {"history_momentum": history_momentum, "history_init": history_init}
            settings |= {"chunk_size": chunk_size, "logits_cache_bytes": logits_cache_bytes}
            settings |= _from_old_names(renamed)
            history_momentum, history_init = settings["history_momentum"], settings["history_init"]
            chunk_size, logits_cache_bytes = settings["chunk_size"], settings["logits_cache_bytes"]
        super().__init__()
        for name, value in (("gamma_sample", gamma_sample), ("gamma_pair", gamma_pair)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, not {value}")
        if history_init is not None and not -1 <= history_init <= 1:
            raise ValueError(f"history_init must be a similarity in [-1, 1], or None, not {history_init}")
        if not 0 <= history_momentum <= 1:
            raise ValueError(f"history_momentum must be in [0, 1], not {history_momentum}")
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}")
        if chunk_size is not None and (chunk_size < 1 or chunk_size != int(chunk_size)):
            raise ValueError(f"chunk_size must be a whole number of at least 1, not {chunk_size}")
        if logits_cache_bytes < 0:
            raise ValueError(f"logits_cache_bytes must be at least 0, not {logits_cache_bytes}")
        self.gamma_sample = gamma_sample
        self.gamma_pair = gamma_pair
        self.history_momentum = history_momentum
        self.use_weights = (use_sample_weight, use_text_weight, use_caption_weight)
        self.objective = objective
        if objective != "alip":
            self.use_weights = (False, False, False)
        self.chunk_size = None if chunk_size is None else int(chunk_size)
        self.logits_cache_bytes = logits_cache_bytes
        self.process_group = process_group
        self.check_finite = check_finite
        self.even_batches = even_batches
        start = math.nan if history_init is None else float(history_init)
        self.register_buffer("history", torch.full((3,), start, dtype=torch.float32))
        self.history: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptiveContrastiveLoss:
        """On the same ranks: a process group cannot be copied."""
        memo[id(self.process_group)] = self.process_group
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied

    @torch.compiler.disable
    def forward(
        self, image_features: Tensor, text_features: Tensor, caption_features: Tensor, logit_scale: Tensor
    ) -> LossOutput:
        """The loss of the global batch.

        image_features, text_features, caption_features: (B, D), L2-normalised, any floating type: this rank's samples.
        logit_scale: scalar, already exp()'d, the same on every rank.
        Raises ValueError for shapes that do not fit and for an empty global batch; FloatingPointError, on all ranks
        together and with the history unchanged, for values that are not finite.
        """
        _check_shapes(image_features, text_features, caption_features, logit_scale)
        dtype = torch.float64 if image_features.dtype == torch.float64 else torch.float32
        collectives = Collectives(self.process_group)
        with torch.autocast(image_features.device.type, enabled=False):
            x, t, c = (f.to(dtype) for f in (image_features, text_features, caption_features))
            scale = logit_scale.to(dtype).reshape(())
            with torch.no_grad():
                S = [(t * c).sum(dim=1), (x * t).sum(dim=1), (x * c).sum(dim=1)]
                sizes, means = self._global_means(collectives, S, (x, t, c, scale))
                history = self._update_history(means)
                W_s, W_t, W_c = gate_weights(*S, history, self.gamma_sample, self.gamma_pair, *self.use_weights)
                paths = zip((W_s * W_t, W_s * W_c), OBJECTIVES[self.objective], strict=True)
                path_weights = [weight if trained else torch.zeros_like(weight) for weight, trained in paths]
            text_loss, caption_loss = bi_path_contrast(
                x, t, c, scale, *path_weights, collectives, sizes, self.chunk_size, self.logits_cache_bytes
            )
            return LossOutput(text_loss + caption_loss, text_loss, caption_loss, W_s, W_t, W_c, *S)

    def _global_means(
        self, collectives: Collectives, S: list[Tensor], inputs: tuple[Tensor, ...]
    ) -> tuple[list[int], Tensor]:
        """Number of samples of each rank, and the global means of the similarities (3,), by one small collective.

        The same message reports which input is not finite and where, so that all ranks raise together and none waits
        for one that has.
        """
        count = len(S[0])
        numbers = [torch.full((), count, device=S[0].device), *(s.sum(dtype=torch.float64) for s in S)]
        if self.check_finite:
            # A row's norm is not finite if any of its values is not: one pass, no temporary as large as the features.
            norms = [torch.linalg.vector_norm(f, dim=1) for f in inputs[:3]]
            numbers += [(~value.isfinite()).sum() for value in (*norms, inputs[3])]
        reports = collectives.gather_reports(torch.stack([number.double() for number in numbers]))

        sizes = [count] * collectives.size
        if self.check_finite or (collectives.size > 1 and not self.even_batches):
            host = reports.tolist()  # the only line where the host waits for the device
            sizes = [int(report[0]) for report in host]
            for k, name in enumerate(_INPUTS if self.check_finite else ()):
                where = [f"{report[4 + k]:.0f} on rank {rank}" for rank, report in enumerate(host) if report[4 + k]]
                if where:
                    unit = "" if name == "logit_scale" else " (samples: " + ", ".join(where) + ")"
                    raise FloatingPointError(f"{name} holds NaN or infinite values{unit}; the history is unchanged")
        if sum(sizes) == 0:
            raise ValueError("the global batch is empty: no rank has a sample")
        return sizes, reports[:, 1:4].sum(dim=0) / sum(sizes)

    def _update_history(self, means: Tensor) -> Tensor:
        """Equations 1 and 3, applied before the history is used: means (3,) of the batch → the new history (3,)."""
        history = self.history.double()
        first = history.isnan()
        if self.training:
            moved = self.history_momentum * history + (1 - self.history_momentum) * means
            moved = torch.where(first, means, moved)
            self.history.copy_(torch.where(moved.isfinite(), moved, history))
            return self.history
        return torch.where(first, means, history)

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptiveContrastiveLoss:
        before = self.history
        super()._apply(fn, recurse)
        if self.history.dtype != torch.float32:  # what was lost in the cast comes from before it
            known = torch.empty_like(self.history, dtype=torch.float32) if before.is_meta else before
            self.history = known.to(self.history.device)
        return self

    def extra_repr(self) -> str:
        names = ("sample", "text", "caption")
        weights = [name for name, used in zip(names, self.use_weights) if used]
        return (
            f"gamma_sample={self.gamma_sample}, gamma_pair={self.gamma_pair}, "
            f"history_momentum={self.history_momentum}, "
            f"objective={self.objective}, weights={'+'.join(weights) or 'none'}, check_finite={self.check_finite}"
        )


def _from_old_names(given: dict[str, Any]) -> dict[str, Any]:
    """Settings under their names from before version 0.2 → under today's, with a warning."""
    for old in given:
        if old not in _RENAMED:
            raise TypeError(f"AdaptiveContrastiveLoss has no setting {old!r}")
        warnings.warn(f"{old} is now called {_RENAMED[old]}", DeprecationWarning, stacklevel=3)
    return {_RENAMED[old]: value for old, value in given.items()}


def _check_shapes(image: Tensor, text: Tensor, caption: Tensor, logit_scale: Tensor) -> None:
    shapes = [tuple(f.shape) for f in (image, text, caption)]
    if image.dim() != 2 or len(set(shapes)) != 1:
        raise ValueError(f"image, text and caption features must be (B, D) and of one shape, not {shapes}")
    if not all(f.is_floating_point() for f in (image, text, caption)):
        raise ValueError(f"features must be floating point, not {[str(f.dtype) for f in (image, text, caption)]}")
    if not isinstance(logit_scale, Tensor):
        raise TypeError(
            f"logit_scale must be a tensor, as the model's logit_scale.exp(), not {type(logit_scale).__name__}"
        )
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must be one number, not of shape {tuple(logit_scale.shape)}")
