"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from alip.cpu_products import onednn_linears
from alip.model.precision import autocast
from alip.train.accumulate import accumulated_backward, running_statistics
from alip.train.ema import EMA
from alip.train.sharding import Gradients


@dataclass
class StepResult:
    """What one step gives. Everything stays on the device: reading it is the caller's choice, and costs a wait.

    outcome: the loss function's own output (loss, weights, similarities); grad_norm: before clipping;
    skipped: true if loss or gradient was not finite, and the weights were therefore left alone;
    loss_finite: whether the loss itself was finite.
    """

    outcome: Any
    grad_norm: torch.Tensor
    skipped: torch.Tensor
    loss_finite: torch.Tensor


class TrainStep:
    """Forward, loss, backward, clip, optimizer: `step(micro_batches, lr, beta1)`.

    model: the plain model. loss: an AdaptiveContrastiveLoss. optimizer: a fused one leaves out a step on
    the device; for others the host waits for the device, to know whether to call them.
    parallel_model: `model` inside DistributedDataParallel, or None.
    grad_clip: largest norm of the gradient, 0 for none. logit_scale_max: upper end of exp(parameter).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        parallel_model: nn.Module | None = None,
        precision: str = "fp32",
        scaler: torch.amp.GradScaler | None = None,
        ema: EMA | None = None,
        grad_clip: float = 1.0,
        logit_scale_max: float = 100.0,
    ):
        self.model, self.loss, self.optimizer, self.device = model, loss, optimizer, device
        self.parallel_model = parallel_model if parallel_model is not None else model
        self.precision, self.scaler, self.ema = precision, scaler, ema
        self.grad_clip, self.logit_scale_limit = grad_clip, math.log(logit_scale_max)
        self.gradients = Gradients(model)
        self.plain_layers = not any(_is_compiled_or_repeated(module) for module in model.modules())
        self.skips_on_device = getattr(optimizer, "_step_supports_amp_scaling", False)
        # What a step moves besides the parameters: the gates' history, and BatchNorm's running statistics.
        self.moved = [loss.history, *running_statistics(model)]

    def __call__(self, micro_batches: Sequence[Any], lr: float, beta1: float | None = None) -> StepResult:
        """One step from all of `micro_batches` together (one of them, unless accumulating)."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            if beta1 is not None:
                group["betas"] = (beta1, group["betas"][1])
        self.gradients.clear()
        before = self._snapshot()

        with onednn_linears(self.device) if self.plain_layers else nullcontext():
            outcome = self._backward(micro_batches)
        self.gradients.collect()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        grad_norm = self.gradients.norm()
        loss_finite = torch.isfinite(outcome.loss.detach())
        skipped = ~(loss_finite & torch.isfinite(grad_norm))
        self._update(grad_norm, skipped)

        self._undo(before, skipped)
        with torch.no_grad():
            self.model.logit_scale.clamp_(0.0, self.logit_scale_limit)
        if self.ema is not None:
            self.ema.update(self.model, skipped)
        return StepResult(outcome, grad_norm, skipped, loss_finite)

    @torch.no_grad()
    def _snapshot(self) -> torch.Tensor:
        """A copy of everything in `moved`, in one piece."""
        return torch.cat([tensor.flatten() for tensor in self.moved])

    @torch.no_grad()
    def _undo(self, before: torch.Tensor, skipped: torch.Tensor) -> None:
        """Restores the snapshot, on the device, where `skipped` is true: a step that is left out leaves no trace."""
        kept = torch.where(skipped, before, self._snapshot())
        for tensor, values in zip(self.moved, kept.split([tensor.numel() for tensor in self.moved])):
            tensor.copy_(values.view_as(tensor))

    def _backward(self, micro_batches: Sequence[Any]):
        if len(micro_batches) > 1:
            return accumulated_backward(
                self.model, self.parallel_model, micro_batches, self.loss, self._autocast, self._scaled, self.device
            )
        batch = micro_batches[0]
        with self._autocast():
            features = self.parallel_model(*batch.inputs)
        outcome = self.loss(*features)
        self._scaled(outcome.loss).backward()
        return outcome

    def _update(self, grad_norm: torch.Tensor, skipped: torch.Tensor) -> None:
        """The optimizer's step with the gradient cut to grad_clip; left out where `skipped` is true.

        grad_norm: of the gradient as it is, which is the mean over the ranks already.
        """
        if self.scaler is not None:
            if self.grad_clip > 0:
                torch.nn.utils.clip_grads_with_norm_(self.gradients.parameters, self.grad_clip, grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        if not self.skips_on_device:
            if self.grad_clip > 0:
                torch.nn.utils.clip_grads_with_norm_(self.gradients.parameters, self.grad_clip, grad_norm)
            if not skipped.item():  # the host waits for the device: such an optimizer can only be left uncalled
                self.optimizer.step()
            return
        # The protocol between GradScaler and fused optimizers: each gradient is divided by grad_scale as it is read,
        # which saves a pass over all of them, and the weights change only if found_inf is 0.
        if self.grad_clip > 0:
            self.optimizer.grad_scale = ((grad_norm + 1e-6) / self.grad_clip).clamp(min=1.0)
        self.optimizer.found_inf = skipped.float()
        self.optimizer.step()
        del self.optimizer.found_inf
        if self.grad_clip > 0:
            del self.optimizer.grad_scale

    def _autocast(self) -> AbstractContextManager:
        return autocast(self.precision, self.device)

    def _scaled(self, loss: torch.Tensor) -> torch.Tensor:
        return self.scaler.scale(loss) if self.scaler is not None else loss


def _is_compiled_or_repeated(module: nn.Module) -> bool:
    """True if torch.compile or gradient checkpointing (open_clip's and timm's name for it, Hugging Face's) is on."""
    names = ("_compiled", "_compiled_call_impl", "grad_checkpointing", "gradient_checkpointing")
    return any(getattr(module, name, None) for name in names)
