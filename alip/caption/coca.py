"""open_clip's CoCa as a captioner.

open_clip 3.3's own `CoCa.generate` imports `BeamSearchScorer`, which transformers 5 no longer has, and then refuses to
run. So the search is implemented here, over the model's own towers, with the image encoded once instead of once per
beam, and without transformers. It is transformers' beam search (measured against `BeamSearchScorer` of transformers
4.55 on random CoCas: 288 of 288 captions equal), over log-probabilities: `CoCa.generate` adds up raw logits, which
favours beams whose logits happen to be large.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image

from alip.caption.captioners import Decoding
from alip.caption.sampling import Sampler
from alip.errors import UserError
from alip.files import real_path

DEFAULT_MODEL = ("coca_ViT-L-14", "mscoco_finetuned_laion2b_s13b_b90k")


class CoCaCaptioner:
    """CoCa from open_clip.

    model_name: None for the released captioner (ViT-L/14 fine-tuned on COCO captions; downloaded by open_clip), a
    folder with open_clip_config.json and weights, or MODEL/PRETRAINED, as in coca_ViT-B-32/laion2b_s13b_b90k.
    """

    takes_seeds = True

    def __init__(
        self, model_name: str | None, decoding: Decoding, device: torch.device, precision: torch.dtype
    ) -> None:
        self.model, transform, self.tokenizer = _load(model_name)
        self.model.to(device, precision).eval()
        self.prepare = _Preparer(transform)
        size = self.model.visual.image_size
        self.short_side = max(size) if isinstance(size, tuple) else int(size)
        self.device, self.precision, self.decoding = device, precision, decoding
        self.metadata = {
            "model_class": type(self.model).__name__,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    @torch.inference_mode()
    def caption(self, batch: list[np.ndarray], seeds: list[int] | None = None) -> list[str]:
        """batch: n arrays (3, H, W) from `prepare`; seeds: of sampling, one for each. Returns n strings."""
        images = torch.from_numpy(np.stack(batch)).to(self.device, self.precision)
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        if self.decoding.sample:
            rows = sample_tokens(self.model, images, self.decoding, start, end, seeds)
        else:
            rows = beam_search(self.model, images, self.decoding, start, end)
        return [self.tokenizer.decode(row).strip() for row in rows]


class _Preparer:
    """PIL image → (3, H, W) float32 array; picklable, for the worker processes."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> np.ndarray:
        return self.transform(image).numpy()


def _next_log_probabilities(
    model: torch.nn.Module, tokens: torch.Tensor, image_embs: torch.Tensor, decoding: Decoding, end: int
) -> torch.Tensor:
    """(rows, length) tokens → (rows, vocabulary) log-probabilities of the next token, fp32."""
    _, token_embs = model._encode_text(tokens)
    logits = model.text_decoder(image_embs, token_embs)[:, -1].float()
    log_probabilities = F.log_softmax(logits, dim=-1)
    if decoding.repetition_penalty != 1.0:  # CTRL's rule on log-probabilities, which are never positive
        seen = log_probabilities.gather(1, tokens) * decoding.repetition_penalty
        log_probabilities = log_probabilities.scatter(1, tokens, seen)
    if tokens.shape[1] - 1 < decoding.min_new_tokens:
        log_probabilities[:, end] = -torch.inf
    return log_probabilities


def _longest(model: torch.nn.Module, decoding: Decoding) -> int:
    """Most tokens that a row may have, start and end included: what was asked for, within the model's context."""
    return min(decoding.max_new_tokens + 1, int(model.context_length))


def beam_search(
    model: torch.nn.Module, images: torch.Tensor, decoding: Decoding, start: int, end: int
) -> list[list[int]]:
    """images (n, 3, H, W) → n token lists without start and end, each the best by mean log-probability.

    The rules of transformers' (and thereby open_clip's) beam search, length penalty 1: of the 2·num_beams best
    continuations, those that end among the first num_beams are kept as finished with their mean log-probability, and
    the best unfinished ones continue; an image is done when it has num_beams finished captions, none of which the best
    running beam could still beat at its present length.
    """
    count, num_beams = images.shape[0], decoding.num_beams
    _, image_embs = model._encode_image(images)
    image_embs = image_embs.repeat_interleave(num_beams, dim=0)
    tokens = torch.full((count * num_beams, 1), start, dtype=torch.long, device=images.device)
    scores = torch.full((count, num_beams), -1e9, device=images.device)
    scores[:, 0] = 0.0  # all beams are equal at first: only one of them may branch
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(count)]
    done = [False] * count

    while tokens.shape[1] < _longest(model, decoding) and not all(done):
        log_probabilities = _next_log_probabilities(model, tokens, image_embs, decoding, end)
        vocabulary = log_probabilities.shape[1]
        total = (log_probabilities.view(count, num_beams, -1) + scores[:, :, None]).view(count, -1)
        best_scores, best = total.topk(min(2 * num_beams, total.shape[1]), dim=1)
        length = tokens.shape[1]
        rows, words, kept = [], [], []
        for image, (image_scores, choices) in enumerate(zip(best_scores.tolist(), best.tolist())):
            running: list[tuple[int, int, float]] = []
            for rank, (score, choice) in enumerate(zip(image_scores, choices)):
                row, word = image * num_beams + choice // vocabulary, choice % vocabulary
                if word != end:
                    running.append((row, word, score))
                elif rank < num_beams and not done[image]:
                    _keep(finished[image], score / length, tokens[row, 1:].tolist(), num_beams)
                if len(running) == num_beams:
                    break
            if len(finished[image]) == num_beams and min(finished[image])[0] >= image_scores[0] / length:
                done[image] = True
            rows += [row for row, _, _ in running]
            words += [word for _, word, _ in running]
            kept.append([score for _, _, score in running])
        order = torch.tensor(rows, device=images.device)
        tokens = torch.cat([tokens[order], torch.tensor(words, device=images.device)[:, None]], dim=1)
        scores = torch.tensor(kept, device=images.device)

    for image in range(count):
        if not done[image]:
            for beam in range(num_beams):
                score = scores[image, beam].item() / (tokens.shape[1] - 1)
                _keep(finished[image], score, tokens[image * num_beams + beam, 1:].tolist(), num_beams)
    return [max(candidates)[1] for candidates in finished]


def _keep(finished: list[tuple[float, list[int]]], score: float, tokens: list[int], most: int) -> None:
    finished.append((score, tokens))
    if len(finished) > most:
        finished.remove(min(finished))


def sample_tokens(
    model: torch.nn.Module,
    images: torch.Tensor,
    decoding: Decoding,
    start: int,
    end: int,
    seeds: list[int] | None = None,
) -> list[list[int]]:
    """images (n, 3, H, W) → n token lists, sampled after temperature, top-k and top-p; seeds: see Sampler."""
    sampler = Sampler(decoding, seeds, len(images))
    _, image_embs = model._encode_image(images)
    tokens = torch.full((images.shape[0], 1), start, dtype=torch.long, device=images.device)
    ended = torch.zeros(images.shape[0], dtype=torch.bool, device=images.device)
    while tokens.shape[1] < _longest(model, decoding) and not ended.all():
        log_probabilities = _next_log_probabilities(model, tokens, image_embs, decoding, end)
        word = torch.where(ended, end, sampler(log_probabilities))
        tokens = torch.cat([tokens, word[:, None]], dim=1)
        ended |= word == end
    rows = [row[1:] for row in tokens.tolist()]
    return [row[: row.index(end)] if end in row else row for row in rows]


def _load(model_name: str | None) -> tuple[torch.nn.Module, Any, Any]:
    """(model, image transform, tokenizer)."""
    if model_name is None:
        name, pretrained = DEFAULT_MODEL
    elif Path(model_name).is_dir():
        name, pretrained = f"local-dir:{real_path(model_name)}", None
    else:
        name, _, pretrained = model_name.partition("/")
        if not pretrained:
            raise UserError(
                f"--captioner coca:{model_name} is no folder: give one, or MODEL/PRETRAINED as in "
                "coca:coca_ViT-B-32/laion2b_s13b_b90k"
            )
    try:
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot load CoCa {name!r}: {reason}") from error
    if not hasattr(model, "text_decoder"):
        raise UserError(f"{name!r} is a {type(model).__name__} and cannot caption: give a CoCa model")
    return model, transform, tokenizer
