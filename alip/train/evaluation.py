"""Evaluation during training: a list of named evaluations, each a function of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from alip.distributed import World
from alip.train.optimizer import MovingAverage
from alip.train.randomness import same_randomness_after


@dataclass(frozen=True)
class Evaluation:
    """One set to evaluate on. run: model -> numbers by name; headline: numbers -> the one that says "better"."""

    task: str
    set_name: str
    run: Callable[[nn.Module], dict]
    headline: Callable[[dict], float]

    @property
    def name(self) -> str:
        """A set may serve both tasks."""
        return f"{self.task}/{self.set_name}"


def create_evaluations(
    retrieval: Sequence[str],
    zeroshot: Sequence[str],
    *,
    data_root: str | None,
    world: World,
    batch_size: int,
    workers: int,
    precision: str,
) -> list[Evaluation]:
    """The sets named by --eval-retrieval and --eval-zeroshot, opened now, so that a wrong name shows at the start."""
    from alip.eval import datasets

    common = {"world": world, "batch_size": batch_size, "workers": workers, "precision": precision}
    evaluations = []
    for name in retrieval:
        from alip.eval.retrieval import evaluate_retrieval

        opened = datasets.open_retrieval(name, data_root=data_root)
        evaluations.append(
            Evaluation("retrieval", opened.name, _bound(evaluate_retrieval, opened, common), _mean_recall)
        )
    for name in zeroshot:
        from alip.eval.zeroshot import evaluate_zeroshot

        opened = datasets.open_classification(name, data_root=data_root)
        evaluations.append(Evaluation("zeroshot", opened.name, _bound(evaluate_zeroshot, opened, common), _headline))
    return evaluations


def evaluate_all(
    evaluations: Sequence[Evaluation], model: nn.Module, moving_average: MovingAverage | None, device: torch.device
) -> dict[str, dict]:
    """{evaluation name: numbers} of the model, or of its averaged weights; training is left undisturbed."""
    with undisturbed(model, device), _averaged(model, moving_average), torch.no_grad():
        model.eval()
        return {evaluation.name: evaluation.run(model) for evaluation in evaluations}


@contextlib.contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts random numbers and training mode back afterwards: a run with evaluations trains as one without."""
    was_training = model.training
    with same_randomness_after(device):
        try:
            yield
        finally:
            model.train(was_training)


@contextlib.contextmanager
def _averaged(model: nn.Module, moving_average: MovingAverage | None) -> Iterator[None]:
    """Lends the averaged weights to the model."""
    if moving_average is None:
        yield
        return
    own = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(moving_average.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(own)


def _bound(function: Callable, dataset, common: dict) -> Callable[[nn.Module], dict]:
    return lambda model: function(model, dataset, **common)


def _mean_recall(numbers: dict) -> float:
    return (numbers["image_to_text_R@1"] + numbers["text_to_image_R@1"]) / 2.0


def _headline(numbers: dict) -> float:
    value = numbers["headline"]
    return float(numbers[value] if isinstance(value, str) else value)
