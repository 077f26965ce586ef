"""Evaluation during training: a list of named evaluations, each a function of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from alip.distributed import World
from alip.model import create_model
from alip.train.ema import EMA
from alip.train.randomness import same_randomness_after
from alip.train.sharding import full, is_sharded


@dataclass(frozen=True)
class Evaluation:
    """One dataset to evaluate on. run: model → numbers by name; primary: numbers → the primary metric's value."""

    task: str
    dataset: str
    run: Callable[[nn.Module], dict]
    primary: Callable[[dict], float]

    @property
    def name(self) -> str:
        """A dataset may serve both tasks."""
        return f"{self.task}/{self.dataset}"


def create_evaluations(
    retrieval: Sequence[str],
    zeroshot: Sequence[str],
    *,
    data_root: str | None,
    world: World,
    batch_size: int,
    workers: int,
    precision: str,
    imagenet_val: str | None = None,
) -> list[Evaluation]:
    """The datasets of --eval-retrieval and --eval-zeroshot, opened now, so that a wrong name fails at the start.

    imagenet_val: the folder of --imagenet-val.
    """
    from alip.eval import datasets

    common = {"world": world, "batch_size": batch_size, "workers": workers, "precision": precision}
    evaluations = []
    for name in retrieval:
        from alip.eval.retrieval import evaluate_retrieval

        opened = datasets.open_retrieval(name, data_root=data_root)
        evaluations.append(
            Evaluation("retrieval", opened.name, _bound(evaluate_retrieval, opened, common), _mean_recall)
        )
    classifications = [datasets.open_classification(name, data_root=data_root) for name in zeroshot]
    if imagenet_val is not None:
        classifications.append(datasets.open_imagenet(imagenet_val))
    for opened in classifications:
        from alip.eval.zeroshot import evaluate_zeroshot

        evaluations.append(Evaluation("zeroshot", opened.name, _bound(evaluate_zeroshot, opened, common), _headline))
    return evaluations


def evaluate_all(
    evaluations: Sequence[Evaluation], model: nn.Module, ema: EMA | None, device: torch.device
) -> dict[str, dict]:
    """{evaluation name: numbers} of the model, or of its averaged weights; training is left undisturbed."""
    with undisturbed(model, device), _averaged(model, ema, device) as evaluated, torch.no_grad():
        evaluated.eval()
        return {evaluation.name: evaluation.run(evaluated) for evaluation in evaluations}


@contextlib.contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restores random numbers and training mode afterwards: a run with evaluations trains as one without."""
    was_training = model.training
    with same_randomness_after(device):
        try:
            yield
        finally:
            model.train(was_training)


@contextlib.contextmanager
def _averaged(model: nn.Module, ema: EMA | None, device: torch.device) -> Iterator[nn.Module]:
    """The model with the averaged weights while the block runs; of a divided one a whole copy on every rank."""
    if is_sharded(model):
        whole = create_model(model.config).to(device)
        weights = ema.state_dict() if ema else model.state_dict()
        whole.load_state_dict({key: full(value) for key, value in weights.items()})
        yield whole
        return
    if ema is None:
        yield model
        return
    own = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(ema.state_dict())
    try:
        yield model
    finally:
        model.load_state_dict(own)


def _bound(function: Callable, dataset, common: dict) -> Callable[[nn.Module], dict]:
    return lambda model: function(model, dataset, **common)


def _mean_recall(numbers: dict) -> float:
    return (numbers["image_to_text_R@1"] + numbers["text_to_image_R@1"]) / 2.0


def _headline(numbers: dict) -> float:
    return float(numbers["primary"])
