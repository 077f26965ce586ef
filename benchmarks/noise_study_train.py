"""One run of the noise study: data in memory, the project's own model, loss and optimizer step, and its evaluation.

A loop of its own, without shards and checkpoints, because a study of a hundred short runs would else spend more time on
starting than on training.
"""

from __future__ import annotations

import functools
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts/demo"), str(ROOT / "benchmarks")]

from noise_study_gating import GivenWeights, SampleWeightOnTextsOnly, frozen_gates  # noqa: E402
from texts import corrupt_texts, sample  # noqa: E402

from alip.build.expression import NUMBER, evaluate_all, parse_condition  # noqa: E402
from alip.data.batch import Batch  # noqa: E402
from alip.eval.gates.labels import matched_auc  # noqa: E402
from alip.eval.retrieval import recall_from_scores  # noqa: E402
from alip.files import atomic_write  # noqa: E402
from alip.loss import AdaptiveContrastiveLoss  # noqa: E402
from alip.model import create_model  # noqa: E402
from alip.model.precision import resolve  # noqa: E402
from alip.tokens import tokenize  # noqa: E402
from alip.train.optimizer import create_optimizer  # noqa: E402
from alip.train.schedule import create_schedule  # noqa: E402
from alip.train.setup import set_layout, set_up  # noqa: E402
from alip.train.step import TrainStep  # noqa: E402

CONCEPTS = 1 / 3  # of the demo's: with fewer names to learn, a short run learns something
SIZE, BATCH, STEPS, LOG_EVERY = 32, 128, 250, 10
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1
LOSS = {"history_init": None, "history_momentum": 0.9}  # the quickstart's: 0.99 would lag behind to the end
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": SIZE},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
ORACLE, FROZEN, TEXTS_ONLY = WEIGHTINGS = ("oracle", "frozen", "texts only")
SCORERS = ("ALIP", "CLIP, captions")  # arms whose scores other arms may need
SIMILARITIES = ("text_caption_similarity", "image_text_similarity", "image_caption_similarity")
WEIGHTS = ("sample_weight", "text_weight", "caption_weight")


@dataclass(frozen=True)
class Run:
    """One training run: arm, its settings of the loss, rates in %, seed.

    keep: for a cleaning arm, the expression over the scores of ALIP's run (same rates and seed) that a sample must
    fulfil. weights: whose weights the loss has, its own gates' ("") or those of WEIGHTINGS. concepts: fraction of the
    demo's concepts.
    """

    arm: str
    loss: tuple[tuple[str, object], ...]
    mismatched: int
    wrong_captions: int
    seed: int
    keep: str = ""
    weights: str = ""
    concepts: float = CONCEPTS

    @property
    def key(self) -> str:
        return f"{self.arm}|m{self.mismatched}|c{self.wrong_captions}|s{self.seed}"

    @property
    def scorer(self) -> Run | None:
        """The run whose scores this one needs: a cleaning arm those of ALIP, frozen gates those of CLIP on captions."""
        if self.keep:
            return Run("ALIP", (), self.mismatched, self.wrong_captions, self.seed)
        if self.weights == FROZEN:
            loss = (("objective", "clip-caption"),)
            return Run("CLIP, captions", loss, self.mismatched, self.wrong_captions, self.seed)
        return None


def scores_path(folder: Path, run: Run) -> Path:
    """Where a run of SCORERS leaves its similarities."""
    return folder / f"{run.key.replace('|', '_')}.npz"


def train_and_measure(run: Run, folder: Path) -> dict:
    """The run's line of results. folder: where the scores of SCORERS are kept for the arms that need them."""
    started, cpu = time.time(), time.process_time()
    set_up(torch.device("cpu"), "fp32", run.seed, False, 1)
    records, images = load_images("train", run.concepts)
    records = corrupt_texts(records, run.mismatched / 100, run.wrong_captions / 100)
    data = SimpleNamespace(
        images=images,
        text=tokenize([row["text"] for row in records]),
        caption=tokenize([row["caption"] for row in records]),
        is_mismatched=torch.tensor([row["is_mismatched"] for row in records]),
        caption_is_wrong=torch.tensor([row["caption_is_wrong"] for row in records]),
    )
    kept = torch.arange(len(images)) if not run.keep else _kept(run, folder)
    model, trace = train_model(run, data, kept, folder=folder)
    scores = _similarities(model, data)
    if run.arm in SCORERS:
        with atomic_write(scores_path(folder, run)) as file:
            np.savez(file, **scores)
    is_mismatched = data.is_mismatched.numpy()
    aucs = {f"auc_{name}": matched_auc(scores[name], is_mismatched) for name in SIMILARITIES[:2] if is_mismatched.any()}
    row = {"key": run.key, "arm": run.arm, "mismatched": run.mismatched, "wrong_captions": run.wrong_captions}
    row |= {"seed": run.seed, "samples": len(kept), "still_mismatched": data.is_mismatched[kept].float().mean().item()}
    row |= {**evaluate(model, run.concepts), **aucs, "trace": trace}
    return row | {"cpu_seconds": round(time.process_time() - cpu, 1), "seconds": round(time.time() - started, 1)}


def _kept(run: Run, folder: Path) -> Tensor:
    """The samples for which the cleaning arm's expression is true, as data2rec.py --from … --keep selects them."""
    scores = dict(np.load(scores_path(folder, run.scorer)))
    scores["index"] = np.arange(len(scores[SIMILARITIES[0]]))
    condition = parse_condition(run.keep, dict.fromkeys(scores, NUMBER), "--keep")
    (values,) = next(evaluate_all([condition], lambda columns: iter([{name: scores[name] for name in columns}])))
    return torch.from_numpy(np.flatnonzero(values))


def _loss(run: Run, data: SimpleNamespace, folder: Path | None) -> AdaptiveContrastiveLoss:
    settings = {**LOSS, **dict(run.loss), "check_finite": False}
    if run.weights == ORACLE:
        return GivenWeights(~data.is_mismatched, ~data.caption_is_wrong, **settings)
    if run.weights == FROZEN:
        scores = dict(np.load(scores_path(folder, run.scorer)))
        return GivenWeights(*frozen_gates({name: torch.from_numpy(one) for name, one in scores.items()}), **settings)
    return (SampleWeightOnTextsOnly if run.weights == TEXTS_ONLY else AdaptiveContrastiveLoss)(**settings)


def train_model(
    run: Run,
    data: SimpleNamespace,
    kept: Tensor,
    captions: Callable[[Tensor, int], Tensor] | None = None,
    folder: Path | None = None,
) -> tuple[nn.Module, dict]:
    """The trained model and the trace of its weights.

    captions: (samples, epoch) → the tokens of the caption that each has in that epoch; None: always data.caption.
    folder: of the scores that frozen gates need.
    """
    model = create_model(MODEL)
    set_layout(model)
    loss = _loss(run, data, folder)
    optimizer = create_optimizer(model, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    step = TrainStep(model, loss, optimizer, torch.device("cpu"), precision=resolve("auto", torch.device("cpu")))
    schedule = create_schedule("one-cycle", LEARNING_RATE, STEPS, "0.1", 0.0)
    generator = torch.Generator().manual_seed(run.seed)
    trace: dict[str, list] = {"step": []}
    order, seen, epoch = torch.empty(0, dtype=torch.long), [], -1
    model.train()
    for number in range(STEPS):
        if len(order) < BATCH:  # an epoch's rest that fills no batch is left out
            order, epoch = kept[torch.randperm(len(kept), generator=generator)], epoch + 1
        index, order = order[:BATCH], order[BATCH:]
        texts = data.text[index], captions(index, epoch) if captions else data.caption[index]
        batch = Batch(_augment(data.images[index], generator), *texts, index)
        loss.index = index  # for GivenWeights
        seen.append((index, step([batch], schedule.learning_rate(number)).outcome))
        if (number + 1) % LOG_EVERY == 0:
            _log(trace, number + 1, seen, data, loss.history)
            seen = []
    return model.eval(), trace


def _log(trace: dict, number: int, seen: list, data: SimpleNamespace, history: Tensor) -> None:
    """Means since the last line, of three groups: all right, raw text mismatched, caption wrong (whatever the text)."""
    index = torch.cat([one for one, _ in seen])
    wrong = data.caption_is_wrong[index]
    groups = {
        "right": ~data.is_mismatched[index] & ~wrong,
        "mismatched": data.is_mismatched[index] & ~wrong,
        "caption_wrong": wrong,
    }
    trace["step"].append(number)
    for name in (*WEIGHTS, *SIMILARITIES):
        values = torch.cat([getattr(outcome, name) for _, outcome in seen])
        for group, members in groups.items():
            mean = round(values[members].mean().item(), 3) if members.any() else None
            trace.setdefault(f"{name}/{group}", []).append(mean)
    for name in ("text_loss", "caption_loss"):
        mean = torch.stack([getattr(outcome, name).detach() for _, outcome in seen]).mean().item()
        trace.setdefault(name, []).append(round(mean, 3))
    for name, value in zip(("H_tc", "H_xt", "H_xc"), history.tolist(), strict=True):
        trace.setdefault(name, []).append(round(value, 3))


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, S, S) uint8 → normalised fp32: rotation 15°, zoom 0.8 to 1.25, shift 0.15, flip, brightness, contrast."""
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, zoom = torch.deg2rad(uniform(-15, 15)), torch.exp(uniform(-0.22, 0.22))
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    rows = [flip * cosine, -sine, uniform(-0.3, 0.3), flip * sine, cosine, uniform(-0.3, 0.3)]
    grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(images.shape), align_corners=False)
    # White outside: the images are shifted so that white is 0, which is what grid_sample pads with.
    pixels = F.grid_sample(images.float() / 255 - 1, grid, align_corners=False) + 1
    contrast, brightness = (uniform(0.7, 1.3).view(-1, 1, 1, 1) for _ in range(2))
    return _normalise((((pixels - 0.5) * contrast + 0.5) * brightness).clamp(0, 1))


def _normalise(pixels: Tensor) -> Tensor:
    return ((pixels - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def image_features(model: nn.Module, images: Tensor) -> Tensor:
    parts = [model.encode_image(_normalise(part.float() / 255), normalize=True) for part in images.split(256)]
    return torch.cat(parts).float()


@torch.inference_mode()
def text_features(model: nn.Module, tokens: Tensor) -> Tensor:
    return torch.cat([model.encode_text(part, normalize=True) for part in tokens.split(512)]).float()


def _similarities(model: nn.Module, data: SimpleNamespace) -> dict[str, np.ndarray]:
    """S_tc, S_xt, S_xc of all training samples, images as they are."""
    x, t, c = image_features(model, data.images), text_features(model, data.text), text_features(model, data.caption)
    return {name: (a * b).sum(1).numpy() for name, (a, b) in zip(SIMILARITIES, ((t, c), (x, t), (x, c)), strict=True)}


def evaluate(model: nn.Module, concepts: float = CONCEPTS) -> dict[str, float]:
    """Retrieval by name on the held-out styles of the run's concepts."""
    records, images = load_images("held-out-style", concepts)
    features = image_features(model, images)
    names = text_features(model, tokenize([row["name"] for row in records]))
    recalls = recall_from_scores(features @ names.T, torch.arange(len(records)))
    kept = ("text_to_image_R@1", "text_to_image_R@5", "image_to_text_R@1", "image_to_text_R@5")
    return {name: round(recalls[name], 3) for name in kept}


@functools.cache
def load_images(split: str, concepts: float = CONCEPTS) -> tuple[list[dict], Tensor]:
    """(records, (n, 3, SIZE, SIZE) uint8) of a fraction of the demo's concepts in one of its splits."""
    records, images = {}, {}
    for source in sorted((ROOT / "scripts/demo").glob(f"{split}-*.tar")):
        with tarfile.open(source) as tar:
            for member in tar:
                key, content = Path(member.name).stem, tar.extractfile(member).read()
                if member.name.endswith(".json"):
                    records[key] = {"key": key, **json.loads(content)}
                else:
                    images[key] = content
    chosen = [row for row in records.values() if sample(row["name"], "noise study") < concepts]
    return chosen, torch.stack([_decode(images[row["key"]]) for row in chosen])


def _decode(content: bytes) -> Tensor:
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def start_worker() -> None:
    """One thread per process: runs of a study go side by side."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
