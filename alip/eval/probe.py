"""Linear probe: logistic regression by L-BFGS on frozen image features, as CLIP does it.

The strength of the regularisation is swept on a part of the training images that is held out (a search that halves its
step around the best value, down to 8 steps a decade), and the final fit is on all of them. Features are L2-normalised.
scikit-learn fits on a CPU, torch on a GPU; both minimise sum(cross-entropy) + |W|² / (2C), the bias free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alip.distributed import broadcast_object
from alip.errors import UserError
from alip.eval.datasets import ClassificationDataset
from alip.eval.features import Encoding, encode_images
from alip.eval.zeroshot import accuracies

_COARSE = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)  # powers of ten for C
_FINEST = 1 / 8
_HELD_OUT = 0.2


@dataclass(frozen=True)
class Linear:
    """A fitted probe: weight (classes, D), bias (classes,); `logits` takes features (n, D)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        return features.to(self.weight) @ self.weight.T + self.bias


def fit_sklearn(features: Tensor, labels: Tensor, classes: int, strength: float, start: Linear | None = None) -> Linear:
    """scikit-learn's L-BFGS with C = strength. features (n, D) and labels (n,) of at least two classes, on the CPU."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import, and only the probe needs it

    # For two classes scikit-learn fits one row of weights, whose penalty is twice that of a row for each class.
    if len(labels.unique()) == 2:
        strength = 2 * strength
    found = LogisticRegression(C=strength, max_iter=5000, tol=1e-7)
    found.fit(features.double().cpu().numpy(), labels.cpu().numpy())
    weight, bias = torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)
    if len(weight) == 1:  # scikit-learn keeps one row for two classes: the logit of the second over the first
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    # A class without training images gets no row there; it is never predicted.
    full_weight = torch.zeros(classes, weight.shape[1], dtype=weight.dtype)
    full_bias = torch.full((classes,), -1e9, dtype=bias.dtype)
    present = torch.from_numpy(found.classes_)
    full_weight[present], full_bias[present] = weight, bias
    return Linear(full_weight, full_bias)


def fit_torch(features: Tensor, labels: Tensor, classes: int, strength: float, start: Linear | None = None) -> Linear:
    """The same on the features' device, in float64, by torch's L-BFGS; start: where to begin (another C's answer)."""
    features = features.double()
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    bias = torch.zeros(classes, dtype=torch.float64, device=features.device)
    if start is not None:
        weight, bias = start.weight.clone(), start.bias.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=5000,
        max_eval=10000,
        history_size=10,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        penalty = weight.square().sum() / (2 * strength * len(features))
        loss = F.cross_entropy(features @ weight.T + bias, labels) + penalty
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return Linear(weight.detach(), bias.detach())


def sweep(features: Tensor, labels: Tensor, classes: int, fit=fit_sklearn, seed: int = 0) -> float:
    """The C that classifies a held-out fifth of the images best (of equals the smallest: the stronger penalty)."""
    held = _held_out(labels, seed)
    scores: dict[float, float] = {}
    start: Linear | None = None

    def score(power: float) -> float:
        nonlocal start
        if power not in scores:
            start = fit(features[~held], labels[~held], classes, 10.0**power, start)
            numbers, _ = accuracies(start.logits(features[held]), labels[held].to(start.weight.device))
            scores[power] = numbers["top1"]
        return scores[power]

    best = max(_COARSE, key=score)
    step = 1.0
    while step >= _FINEST:
        best = max((best, best - step, best + step), key=lambda power: (score(power), -power))
        step /= 2
    return 10.0**best


def _held_out(labels: Tensor, seed: int) -> Tensor:
    """(n,) bool: a fifth of each class's images, at least one where there are two."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique().tolist():
        own = (labels.cpu() == label).nonzero().squeeze(1)
        count = max(1, round(_HELD_OUT * len(own))) if len(own) > 1 else 0
        held[own[torch.randperm(len(own), generator=generator)[:count]]] = True
    return held.to(labels.device)


def measure_probe(
    model: nn.Module, dataset: ClassificationDataset, encoding: Encoding, seed: int = 0
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Accuracies with `primary` and the chosen C, and the unreadable images. All ranks must call it."""
    if dataset.train is None:
        raise UserError(f"{dataset.name} has no training images for a linear probe; see docs/evaluation.md")
    training = model.training
    model.eval()
    transform = None if dataset.transform is None else dataset.transform(model)
    train = encode_images(model, dataset.train(), encoding, f"{dataset.name} training images", transform)
    test = encode_images(model, dataset.images, encoding, f"{dataset.name} images", transform)
    model.train(training)
    numbers: dict[str, float] = {}
    if encoding.world.is_main:
        fit = fit_torch if encoding.world.device.type == "cuda" else fit_sklearn
        classes = len(dataset.classnames)
        strength = sweep(train.features, train.labels, classes, fit, seed)
        found = fit(train.features, train.labels, classes, strength)
        numbers, _ = accuracies(found.logits(test.features), test.labels.to(found.weight.device))
        numbers["primary"] = numbers[dataset.metric]
        numbers.update(images=len(test.labels), train_images=len(train.labels), classes=classes, C=strength)
        numbers["unreadable"] = len(train.unreadable) + len(test.unreadable)
    return broadcast_object(numbers, encoding.world), [*train.unreadable, *test.unreadable]
