"""Logistic regression on frozen features, and the search for the strength of its penalty.

Two solvers of one problem, the minimum of sum(cross-entropy) + |W|² / (2C) with the bias free: scikit-learn's L-BFGS,
and torch's, which passes over the features block by block, so that they may be on a GPU or in memory-mapped files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_COARSE = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)  # powers of ten for C
_FINEST = 1 / 8
_HELD_OUT = 0.2
ITERATIONS = 5000  # of L-BFGS, at most
_BLOCK = 8192  # rows of features in one product


@dataclass(frozen=True)
class Linear:
    """A fitted probe: weight (classes, D), bias (classes,); `logits` takes features (n, D).

    converged: False if the solver stopped at its largest number of iterations.
    """

    weight: Tensor
    bias: Tensor
    converged: bool = True

    def logits(self, features: Tensor) -> Tensor:
        return features.to(self.weight) @ self.weight.T + self.bias


class LabelledFeatures(Protocol):
    """What the solvers take.

    labels: (n,) int64 on the CPU. blocks: (features (b, D), labels (b,)) in order, on one device; may be called often.
    part: the rows where the mask (n,) is true. exact: whether float64 is affordable.
    """

    labels: Tensor
    exact: bool

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def part(self, mask: Tensor) -> LabelledFeatures: ...


class FeaturesInMemory:
    """Features (n, D) and labels (n,) as tensors on one device."""

    exact = True

    def __init__(self, features: Tensor, labels: Tensor):
        self.features, self.labels = features, labels.cpu()
        self._own_labels = labels.to(features.device)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.features.split(_BLOCK), self._own_labels.split(_BLOCK))

    def part(self, mask: Tensor) -> FeaturesInMemory:
        return FeaturesInMemory(self.features[mask.to(self.features.device)], self.labels[mask])


Fit = Callable[[LabelledFeatures, int, float, "Linear | None"], Linear]  # (data, classes, C, start) → probe


def fit_sklearn(data: FeaturesInMemory, classes: int, strength: float, start: Linear | None = None) -> Linear:
    """scikit-learn's L-BFGS with C = strength, in float64 on the CPU; labels of at least two classes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # takes a second to import, and only the probe needs it

    # For two classes scikit-learn fits one row of weights, whose penalty is twice that of a row for each class.
    if len(data.labels.unique()) == 2:
        strength = 2 * strength
    found = LogisticRegression(C=strength, max_iter=ITERATIONS, tol=1e-7)
    with warnings.catch_warnings():  # one shot: as many classes as images are what is asked for
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says it of the fit that counts
        found.fit(data.features.double().cpu().numpy(), data.labels.numpy())
    weight, bias = torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)
    if len(weight) == 1:  # scikit-learn keeps one row for two classes: the logit of the second over the first
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    # A class without training images gets no row there; it is never predicted.
    full_weight = torch.zeros(classes, weight.shape[1], dtype=weight.dtype)
    full_bias = torch.full((classes,), -1e9, dtype=bias.dtype)
    present = torch.from_numpy(found.classes_)
    full_weight[present], full_bias[present] = weight, bias
    return Linear(full_weight, full_bias, int(found.n_iter_.max()) < ITERATIONS)


def fit_torch(data: LabelledFeatures, classes: int, strength: float, start: Linear | None = None) -> Linear:
    """The same by torch's L-BFGS on the features' device; start: where to begin (another C's answer).

    Every evaluation of the loss passes over all blocks and sums in float64, so that the answer does not depend on
    their size. Products are float64 too where the data is `exact`, else float32.
    """
    width, device = next((features.shape[1], features.device) for features, _ in data.blocks())
    weight = torch.zeros(classes, width, dtype=torch.float64, device=device)
    bias = torch.zeros(classes, dtype=torch.float64, device=device)
    if start is not None:
        weight, bias = start.weight.clone(), start.bias.clone()
    rows = len(data.labels)
    product_type = torch.float64 if data.exact else torch.float32
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        max_eval=10000,
        history_size=10,
        tolerance_grad=1e-7,
        tolerance_change=1e-12 if data.exact else 1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        loss = weight.square().sum() / (2 * strength * rows)
        weight_gradient, bias_gradient = weight / (strength * rows), torch.zeros_like(bias)
        plain_weight, plain_bias = weight.to(product_type), bias.to(product_type)
        for features, labels in data.blocks():
            features = features.to(product_type)
            log_probabilities = torch.addmm(plain_bias, features, plain_weight.T).log_softmax(1)
            loss -= log_probabilities.gather(1, labels[:, None]).double().sum() / rows
            residual = log_probabilities.exp_()
            residual[torch.arange(len(labels), device=device), labels] -= 1
            weight_gradient += (residual.T @ features).double() / rows
            bias_gradient += residual.double().sum(0) / rows
        weight.grad, bias.grad = weight_gradient, bias_gradient
        return loss

    with torch.no_grad():
        solver.step(closure)
    # As in scikit-learn, a class without training images is never predicted.
    bias[torch.bincount(data.labels, minlength=classes).to(device) == 0] = -1e9
    return Linear(weight, bias, solver.state[weight]["n_iter"] < ITERATIONS)


def logits_of(probe: Linear, data: LabelledFeatures) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits (b, classes), labels (b,)) block by block, on the probe's device."""
    for features, labels in data.blocks():
        yield probe.logits(features), labels.to(probe.weight.device)


def sweep(train: LabelledFeatures, validation: LabelledFeatures, classes: int, fit: Fit) -> float:
    """The C whose fit on `train` classifies `validation` best; of equals the smallest, which penalises most.

    A search that halves its step around the best power of ten, down to 8 steps a decade, as CLIP does it.
    """
    scores: dict[float, float] = {}
    start: Linear | None = None

    def score(power: float) -> float:
        nonlocal start
        if power not in scores:
            start = fit(train, classes, 10.0**power, start)
            hits = sum(int((logits.argmax(1) == labels).sum()) for logits, labels in logits_of(start, validation))
            scores[power] = hits / len(validation.labels)
        return scores[power]

    best = max(_COARSE, key=score)
    step = 1.0
    while step >= _FINEST:
        near = (power for power in (best, best - step, best + step) if _COARSE[0] <= power <= _COARSE[-1])
        best = max(near, key=lambda power: (score(power), -power))
        step /= 2
    return 10.0**best


def held_out(labels: Tensor, seed: int) -> Tensor:
    """(n,) bool: a fifth of each class's images, at least one where there are two."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique().tolist():
        own = (labels.cpu() == label).nonzero().squeeze(1)
        count = max(1, round(_HELD_OUT * len(own))) if len(own) > 1 else 0
        held[own[torch.randperm(len(own), generator=generator)[:count]]] = True
    return held
