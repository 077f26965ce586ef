"""Image-text retrieval: recall at 1, 5, 10 in both directions, median and mean rank.

Multi-caption, as COCO and Flickr30k are reported: an image counts as found in the top K when any of its captions is
there. `single_positive_…` is the other number in use (open_clip's, during training): one caption per image, N × N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from alip.distributed import World, broadcast_object
from alip.errors import UserError
from alip.eval.datasets import RetrievalDataset
from alip.eval.features import Encoding, encode_images, encode_texts
from alip.eval.image_arrays import SelectedImages
from alip.eval.outcomes import Outcomes, retrieval_outcomes
from alip.eval.prompts import retrieval_prefix
from alip.eval.ranking import Ranks, ranks_from_features, ranks_from_scores
from alip.eval.text_lengths import count_cut


@dataclass(frozen=True)
class Retrieved:
    """What one evaluation found: the numbers, and what plots need.

    dataset: what was measured, without the images that could not be read.
    image_features (images, D), caption_features (captions, D): L2-normalised float32.
    unreadable: (name, reason) of images left out, with their captions.
    outcomes: the ranks of all queries, on the main rank; {} elsewhere.
    """

    numbers: dict[str, float]
    dataset: RetrievalDataset
    image_features: Tensor
    caption_features: Tensor
    unreadable: list[tuple[str, str]]
    outcomes: Outcomes = field(default_factory=dict)


def recall_from_scores(scores: Tensor, caption_owner: Tensor | Sequence[int], ks: Sequence[int] = (1, 5, 10)) -> dict:
    """Percentages image_to_text_R@K and text_to_image_R@K, and the ranks' median and mean (1 = first).

    scores: (images, captions), higher is better. caption_owner: (captions,), each caption's image number; any number
    of captions per image, in any order; an image without a caption is only a wrong answer, never a query.
    A right answer is found in the top K when fewer than K wrong ones score at least as high: ties count against us.
    Raises ValueError for shapes that do not fit and for NaN.
    """
    scores = torch.as_tensor(scores)
    if not bool(torch.isfinite(scores.sum())) and not bool(torch.isfinite(scores).all()):
        raise ValueError("the scores hold NaN or infinity")
    return recalls(ranks_from_scores(scores, torch.as_tensor(caption_owner)), ks)


def recalls(ranks: Ranks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """The numbers of `recall_from_scores`, from ranks."""
    numbers: dict[str, float] = {}
    for name, found in (("image_to_text", ranks.image_to_text), ("text_to_image", ranks.text_to_image)):
        found = found[found >= 0].double()
        for k in ks:
            numbers[f"{name}_R@{k}"] = 100.0 * float((found < k).double().mean())
        numbers[f"{name}_median_rank"] = (
            float(found.quantile(0.5)) + 1 if len(found) < 1e7 else float(found.median()) + 1
        )
        numbers[f"{name}_mean_rank"] = float(found.mean()) + 1
    return numbers


def evaluate_retrieval(
    model: nn.Module,
    dataset: RetrievalDataset,
    *,
    world: World,
    batch_size: int = 256,
    workers: int = 2,
    precision: str = "fp32",
    protocol: str = "standard",
    progress: bool = False,
) -> dict[str, float]:
    """The retrieval numbers of `dataset`, the same on every rank. All ranks must call it."""
    encoding = Encoding(world, batch_size, workers, precision, progress=progress)
    return measure_retrieval(model, dataset, encoding, protocol).numbers


def measure_retrieval(
    model: nn.Module, dataset: RetrievalDataset, encoding: Encoding, protocol: str = "standard"
) -> Retrieved:
    """Encodes images and captions (with the protocol's prefix), and ranks them. All ranks must call it."""
    training = model.training
    model.eval()
    prefix = retrieval_prefix(protocol)
    found = encode_images(model, dataset.opened(), encoding, f"{dataset.name} images")
    if found.unreadable:
        dataset = _without(dataset, found.positions.tolist())
    if not dataset.captions:
        raise UserError(f"{dataset.name}: no caption is left, because its images cannot be read")
    texts = [prefix + caption for caption in dataset.captions]
    caption_features = encode_texts(model, texts, encoding, f"{dataset.name} captions")
    model.train(training)
    numbers: dict[str, float] = {}
    outcomes: Outcomes = {}
    if encoding.world.is_main:
        owner = torch.tensor(dataset.caption_owner, device=found.features.device)
        ranks = ranks_from_features(found.features, caption_features, owner)
        numbers = recalls(ranks)
        outcomes = retrieval_outcomes(ranks.image_to_text, ranks.text_to_image, owner)
        single, single_outcomes = _single_positive(found.features, caption_features, dataset.caption_owner)
        numbers.update(single)
        outcomes.update(single_outcomes)
        numbers.update(images=len(dataset.images), captions=len(dataset.captions), unreadable=len(found.unreadable))
        numbers["texts_cut"] = count_cut(model, texts)
        # The number by which checkpoints are compared, as for classification.
        numbers["primary"] = (numbers["image_to_text_R@1"] + numbers["text_to_image_R@1"]) / 2
    numbers = broadcast_object(numbers, encoding.world)
    return Retrieved(numbers, dataset, found.features, caption_features, found.unreadable, outcomes)


def _single_positive(
    image_features: Tensor, caption_features: Tensor, owner: Sequence[int]
) -> tuple[dict[str, float], Outcomes]:
    """N × N with each image's first caption, as open_clip logs in training. Easier than the multi-caption task."""
    first: dict[int, int] = {}
    for caption, image in enumerate(owner):
        first.setdefault(image, caption)
    if len(first) == len(owner) == len(image_features):
        return {}, {}  # one caption each: the very same task
    images = torch.tensor(sorted(first), device=image_features.device)
    captions = torch.tensor([first[int(image)] for image in images], device=image_features.device)
    numbers = torch.arange(len(images), device=image_features.device)
    ranks = ranks_from_features(image_features[images], caption_features[captions], numbers)
    outcomes = retrieval_outcomes(ranks.image_to_text, ranks.text_to_image, numbers, "single_")
    return {f"single_positive_{name}": value for name, value in recalls(ranks).items()}, outcomes


def _without(dataset: RetrievalDataset, kept: list[int]) -> RetrievalDataset:
    """The dataset with only the kept images (numbers, ascending) and their captions."""
    number = {old: new for new, old in enumerate(kept)}
    left = [i for i, owner in enumerate(dataset.caption_owner) if owner in number]
    return replace(
        dataset,
        images=[dataset.images[i] for i in kept],
        reader=None if dataset.reader is None else SelectedImages(dataset.reader, kept),
        captions=[dataset.captions[i] for i in left],
        caption_owner=[number[dataset.caption_owner[i]] for i in left],
    )
