"""Choosing between texts, or between images: SugarCrepe, Winoground, ARO, WinoGAViL.

What these have in common: some images, some texts, and questions of which the answers follow from their similarities.
A tie counts against us, as in retrieval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from alip.distributed import broadcast_object
from alip.errors import UserError
from alip.eval.features import Encoding, encode_images, encode_texts
from alip.eval.image_readers import Images
from alip.eval.outcomes import Outcomes
from alip.eval.prompts import retrieval_prefix
from alip.eval.ranking import full_precision
from alip.eval.text_lengths import count_cut

# (image features (images, D), text features (texts, D), which images could be read (images,)) → what was right
Judge = Callable[[Tensor, Tensor, np.ndarray], "Judged"]


@dataclass(frozen=True)
class Judged:
    """numbers: percentages, with `primary`. outcomes: hit_NAME or value_NAME for every question. questions: how many
    were counted."""

    numbers: dict[str, float]
    outcomes: Outcomes
    questions: int


@dataclass(frozen=True)
class SelectionDataset:
    """images, texts: all that occur, each once. judge: from their features to the numbers.

    questions: how many there are. expected_questions: how many the benchmark has, the usual number first.
    content: what the questions are, for the hash of the content. metric: what `primary` is.
    """

    name: str
    images: Images
    texts: list[str]
    judge: Judge
    metric: str
    questions: int
    content: list[str] = field(default_factory=list)
    benchmark: str | None = None
    expected_questions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Selected:
    """What one evaluation found. unreadable: (name, reason) of images left out, with the questions about them."""

    numbers: dict[str, float]
    dataset: SelectionDataset
    unreadable: list[tuple[str, str]]
    outcomes: Outcomes


def measure_selection(
    model: nn.Module, dataset: SelectionDataset, encoding: Encoding, protocol: str = "standard"
) -> Selected:
    """Encodes images and texts (with the protocol's prefix), and counts right answers. All ranks must call it."""
    training = model.training
    model.eval()
    found = encode_images(model, dataset.images, encoding, f"{dataset.name} images")
    prefix = retrieval_prefix(protocol)
    texts = [prefix + text for text in dataset.texts]
    text_features = encode_texts(model, texts, encoding, f"{dataset.name} texts")
    model.train(training)
    numbers: dict[str, float] = {}
    outcomes: Outcomes = {}
    if encoding.world.is_main:
        features = torch.zeros(len(dataset.images), found.features.shape[1], device=found.features.device)
        features[found.positions] = found.features
        readable = np.zeros(len(dataset.images), bool)
        readable[found.positions.cpu().numpy()] = True
        with full_precision():
            judged = dataset.judge(features, text_features, readable)
        numbers = dict(judged.numbers)
        numbers.update(images=len(found.labels), questions=judged.questions, unreadable=len(found.unreadable))
        numbers["texts_cut"] = count_cut(model, texts)
        outcomes = judged.outcomes
    numbers = broadcast_object(numbers, encoding.world)
    return Selected(numbers, dataset, found.unreadable, outcomes)


def choice_of_text(image: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> Callable[..., np.ndarray]:
    """A function of the features that answers questions of one image and its right and wrong texts.

    image, right: (n,), wrong: (n, k) numbers of images and texts. It gives (n,) bool: the right text is the best.
    """

    def hits(image_features: Tensor, text_features: Tensor) -> np.ndarray:
        found = []
        for start in range(0, len(image), 4096):
            rows = image_features[torch.from_numpy(image[start : start + 4096]).to(image_features.device)]
            good = text_features[torch.from_numpy(right[start : start + 4096]).to(text_features.device)]
            bad = text_features[torch.from_numpy(wrong[start : start + 4096]).to(text_features.device)]
            score, others = (rows * good).sum(1), (rows[:, None] * bad).sum(2)
            found.append((others < score[:, None]).all(1).cpu())
        return torch.cat(found).numpy()

    return hits


def in_groups(
    image: np.ndarray,
    right: np.ndarray,
    wrong: np.ndarray,
    group: list[str],
    *,
    smallest: int = 1,
    left_out: frozenset[str] = frozenset(),
    show_groups: bool = False,
) -> Judge:
    """A judge whose primary number is the mean accuracy over the groups of questions.

    group: (n,) a name each. smallest: groups with fewer questions are not in the mean, nor are those in left_out.
    show_groups: a number for each group too. `accuracy` is that over all questions.
    """
    hits_of, names = choice_of_text(image, right, wrong), np.array(group)

    def judge(image_features: Tensor, text_features: Tensor, readable: np.ndarray) -> Judged:
        kept = readable[image]
        hit, own = hits_of(image_features, text_features)[kept], names[kept]
        if not len(hit):
            raise UserError("no question is left, because the images cannot be read")
        by_name = {str(name): hit[own == name] for name in np.unique(own)}
        counted = {n: h for n, h in by_name.items() if len(h) >= smallest and n not in left_out}
        numbers = {name: 100.0 * float(hits.mean()) for name, hits in by_name.items()} if show_groups else {}
        numbers["accuracy"] = 100.0 * float(hit.mean())
        if not counted:
            raise UserError(f"no group of questions is counted: the largest has {max(map(len, by_name.values()))}")
        numbers["primary"] = 100.0 * float(np.mean([hits.mean() for hits in counted.values()]))
        numbers["groups"] = len(counted)
        number = {name: i for i, name in enumerate(counted)}
        groups = np.array([number.get(str(name), -1) for name in own], dtype=np.int32)
        outcomes = {"hit_accuracy": hit.astype(np.uint8), "group": groups}
        for name in by_name if show_groups else ():
            outcomes[f"value_{name}"] = np.where(own == name, hit, np.nan).astype(np.float32)
        return Judged(numbers, outcomes, len(hit))

    return judge


def winoground(images: np.ndarray, texts: np.ndarray) -> Judge:
    """images, texts (n, 2): numbers of each question's two images and two captions, in the order that fits.

    text score: for both images the right caption is better; image score: for both captions the right image is; group
    score: both.
    """

    def judge(image_features: Tensor, text_features: Tensor, readable: np.ndarray) -> Judged:
        kept = readable[images].all(1)
        if not kept.any():
            raise UserError("no question is left, because the images cannot be read")
        x = image_features[torch.from_numpy(images[kept]).to(image_features.device)]
        t = text_features[torch.from_numpy(texts[kept]).to(text_features.device)]
        scores = torch.einsum("nid,ncd->nic", x, t)  # (n, image, caption)
        own = scores.diagonal(dim1=1, dim2=2)  # (n, 2): of image i with its own caption
        text = (own > torch.stack([scores[:, 0, 1], scores[:, 1, 0]], 1)).all(1)
        image = (own > torch.stack([scores[:, 1, 0], scores[:, 0, 1]], 1)).all(1)
        hits = {"text_score": text, "image_score": image, "group_score": text & image}
        arrays = {name: hit.cpu().numpy().astype(np.uint8) for name, hit in hits.items()}
        numbers = {name: 100.0 * float(hit.mean()) for name, hit in arrays.items()}
        numbers["primary"] = numbers["group_score"]
        outcomes = {f"hit_{name}": hit for name, hit in arrays.items()}
        return Judged(numbers, {**outcomes, "hit_primary": arrays["group_score"]}, len(text))

    return judge


def winogavil(candidates: list[list[int]], right: list[list[int]]) -> Judge:
    """Text number i is the cue of question i; candidates, right: numbers of images. The best len(right) are chosen.

    The primary number is the mean Jaccard index of chosen and right images over the questions of 10 or 12 candidates,
    DataComp's; questions of 5 or 6 are beside it.
    """

    def judge(image_features: Tensor, text_features: Tensor, readable: np.ndarray) -> Judged:
        indices, sizes = [], []
        for cue, (own, answers) in enumerate(zip(candidates, right)):
            if not readable[own].all():
                continue
            scores = (image_features[own] @ text_features[cue]).cpu().numpy()
            chosen = {own[position] for position in np.argsort(scores, kind="stable")[-len(answers) :]}
            indices.append(len(chosen & {*answers}) / len(chosen | {*answers}))
            sizes.append(len(own))
        if not indices:
            raise UserError("no question is left, because the images cannot be read")
        values, size = 100 * np.array(indices), np.array(sizes)
        parts = {"jaccard": size > 0, "jaccard_5-6": size <= 6, "jaccard_10-12": size >= 10}
        outcomes = {f"value_{n}": np.where(part, values / 100, np.nan) for n, part in parts.items() if part.any()}
        numbers = {name: float(values[part].mean()) for name, part in parts.items() if part.any()}
        if "jaccard_10-12" not in numbers:
            raise UserError("there is no question of 10 or 12 candidates")
        numbers["primary"] = numbers["jaccard_10-12"]
        outcomes |= {"value_primary": outcomes["value_jaccard_10-12"], "stratum": size.astype(np.int32)}
        return Judged(numbers, outcomes, len(indices))

    return judge
