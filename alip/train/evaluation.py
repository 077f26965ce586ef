"""Evaluation during training: a list of named evaluations, each a function of the model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from alip.distributed import World
from alip.errors import UserError
from alip.model import create_model
from alip.train.ema import EMA
from alip.train.randomness import same_randomness_after
from alip.train.sharding import full, is_sharded

WARN_ABOVE = 0.1  # of a run's time
FEW_SHOTS = (1, 4, 16)


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
    probe: Sequence[str] = (),
    few_shot: Sequence[str] = (),
    suite: str | None = None,
    *,
    data_root: str | None,
    world: World,
    batch_size: int,
    workers: int,
    precision: str,
    imagenet_val: str | None = None,
) -> list[Evaluation]:
    """The datasets of the --eval-… flags, opened now, so that a wrong name fails at the start.

    retrieval: datasets of texts, those of a choice between texts too. probe, few_shot: datasets with training images.
    suite: its name; the tasks that are there. imagenet_val: the folder of --imagenet-val. The numbers are those of the
    commands: the same functions measure both.
    """
    # Most runs of train.py evaluate nothing, and these take a second to import.
    from alip.eval import datasets
    from alip.eval.features import Encoding
    from alip.eval.probe import measure_probe, training_images
    from alip.eval.suite_tasks import SUITES
    from alip.eval.suites import open_suite

    encoding = Encoding(world, batch_size, workers, precision, progress=False)
    found = [datasets.open_texts(name, data_root) for name in retrieval]
    found += [datasets.open_classification(name, data_root=data_root) for name in zeroshot]
    if imagenet_val is not None:
        found.append(datasets.open_imagenet(imagenet_val))
    if suite is not None:
        if suite not in SUITES:
            raise UserError(f"--eval-suite {suite}: no such suite; there are {', '.join(SUITES)}")
        found += [opened for _, opened in open_suite(suite, data_root or "data").datasets]
    evaluations = [_plain_evaluation(opened, encoding) for opened in found]
    for task, names, measure in (("probe", probe, measure_probe), ("few-shot", few_shot, _measure_few_shot)):
        for name in names:
            opened = datasets.open_classification(name, data_root=data_root)
            training_images(opened)
            evaluations.append(_evaluation(task, opened, measure, encoding))
    names = [evaluation.name for evaluation in evaluations]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:  # lines of the log, and the best checkpoint's mean, know them by their names
        raise UserError(f"two evaluations are called {twice}: name it once, or rename the folder of one of them")
    return evaluations


def _plain_evaluation(dataset: Any, encoding: Any) -> Evaluation:
    """The evaluation that a dataset has by its form."""
    from alip.eval.classification import ClassificationDataset
    from alip.eval.retrieval import measure_retrieval
    from alip.eval.selection import SelectionDataset, measure_selection
    from alip.eval.zeroshot import measure_zeroshot

    if isinstance(dataset, ClassificationDataset):
        return _evaluation("zeroshot", dataset, measure_zeroshot, encoding)
    if isinstance(dataset, SelectionDataset):
        return _evaluation("selection", dataset, measure_selection, encoding)
    return _evaluation("retrieval", dataset, measure_retrieval, encoding)


def _evaluation(task: str, dataset: Any, measure: Callable, encoding: Any) -> Evaluation:
    return Evaluation(task, dataset.name, lambda model: measure(model, dataset, encoding).numbers, _primary)


def _measure_few_shot(model: nn.Module, dataset: Any, encoding: Any) -> Any:
    """Numbers of all shots, `primary` that of most."""
    from alip.eval.probe import Probed, measure_few_shot

    found = measure_few_shot(model, dataset, encoding, FEW_SHOTS)
    numbers = {"primary": found[FEW_SHOTS[-1]].numbers["primary"]}
    for shots, probed in found.items():
        numbers |= {f"{shots}_shot_{name}": value for name, value in probed.numbers.items()}
    return Probed(numbers, [])


def evaluate_all(
    evaluations: Sequence[Evaluation],
    model: nn.Module,
    ema: EMA | None,
    device: torch.device,
    seconds: dict[str, float] | None = None,
) -> dict[str, dict]:
    """{evaluation name: numbers} of the model, or of its averaged weights; training is left undisturbed.

    seconds: gets what each evaluation took.
    """
    found = {}
    with undisturbed(model, device), _averaged(model, ema, device) as evaluated, torch.no_grad():
        evaluated.eval()
        for evaluation in evaluations:
            start = time.perf_counter()
            found[evaluation.name] = evaluation.run(evaluated)
            if seconds is not None:
                seconds[evaluation.name] = time.perf_counter() - start
    return found


@dataclass(frozen=True)
class EvaluationTime:
    """What the evaluations cost. seconds: of each, once. between: of training from one evaluation to the next.

    interval: how often, in words. fraction: of the run's time.
    """

    seconds: dict[str, float]
    between: float
    interval: str

    @property
    def fraction(self) -> float:
        total = sum(self.seconds.values())
        return total / max(total + self.between, 1e-9)

    def line(self) -> str:
        """One line for the log, a warning above WARN_ABOVE."""
        total = sum(self.seconds.values())
        longest = sorted(self.seconds.items(), key=lambda one: -one[1])[:5]
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in longest)
        more = f" and {len(self.seconds) - 5} more" if len(self.seconds) > 5 else ""
        text = (
            f"evaluation took {total:.1f} s ({parts}{more}); {self.interval}, which is {self.between:.0f} s of "
            f"training: {100 * self.fraction:.1f} % of the run's time"
        )
        if self.fraction <= WARN_ABOVE:
            return text
        return f"warning: {text}; evaluate less often (--eval-every) or on fewer datasets"


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


def _primary(numbers: dict) -> float:
    return float(numbers["primary"])
