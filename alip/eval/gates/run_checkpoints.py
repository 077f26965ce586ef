"""From a run to what scoring needs: its checkpoints, their models and histories, and the recipe of the gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alip.checkpoint.load import load_model
from alip.errors import UserError
from alip.loss import gate_weights
from alip.model.weights import find_checkpoint, read_file


@dataclass(frozen=True)
class GateRecipe:
    """The gates' settings, as `alip.loss.gate_weights` takes them."""

    gamma_sample: float
    gamma_pair: float
    use_sample_weight: bool = True
    use_text_weight: bool = True
    use_caption_weight: bool = True


@dataclass
class Scorer:
    """One checkpoint that scores batches. history: (3,) H of tc, xt, xc as the run left it; source: for the record."""

    model: nn.Module
    history: torch.Tensor
    recipe: GateRecipe
    source: dict[str, Any]

    @torch.inference_mode()
    def score(self, batch, captions: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """(8, n) float64 on the CPU, rows as in alip.data.score_table.SCORES, of the n samples of a batch.

        captions: how many each sample has, (n,), and their tokens, (m, 77), on the CPU: then (8, m), of all of these.
        """
        image, text, caption, _ = self.model(*batch.inputs)
        if captions is not None:
            counts, tokens = captions
            parts = tokens.split(len(image))
            caption = torch.cat([self.model.encode_text(part.to(image.device), normalize=True) for part in parts])
            image, text = (one.repeat_interleave(counts.to(image.device), dim=0) for one in (image, text))
        x, t, c = image.float(), text.float(), caption.float()
        similarities = [(a * b).sum(1) for a, b in ((t, c), (x, t), (x, c))]
        W_s, W_t, W_c = gate_weights(*similarities, self.history, **asdict(self.recipe))
        return torch.stack([*similarities, W_s, W_t, W_c, W_s * W_t, W_s * W_c]).double().cpu()


def find_checkpoints(run: str | Path, count: int) -> list[Path]:
    """The checkpoint files that `--checkpoint RUN` means, oldest first; a file means itself.

    count: at most so many of those that the run folder holds, at even ratios of their steps (1, 2, 4, 8 …): the early
    ones separate mismatched texts best (docs/gates.md). 1: the newest.
    """
    newest = find_checkpoint(run)
    if Path(run).is_file() or count == 1:
        return [newest]
    by_inode: dict[tuple[int, int], Path] = {}  # epoch-0001.pt is mostly a second name of a step's file
    for path in sorted(newest.parent.glob("*.pt")):
        if path.name.startswith(("epoch-", "step-")):
            by_inode.setdefault((path.stat().st_dev, path.stat().st_ino), path)
    by_step: dict[int, Path] = {}
    for path in by_inode.values():
        by_step.setdefault(int(read_file(path)["step"]), path)
    steps = np.array(sorted(by_step))
    logs = np.log(np.maximum(steps, 1))
    wanted = np.linspace(logs[0], logs[-1], count)
    nearest = np.unique(np.abs(logs[None] - wanted[:, None]).argmin(axis=1))
    return [by_step[step] for step in steps[nearest].tolist()]


def open_scorer(path: Path, overrides: dict[str, Any], device: torch.device) -> Scorer:
    """The scorer of a checkpoint of train.py.

    overrides: fields of GateRecipe that the user set, None where the run's own value holds. UserError for weights
    without a gate history, and for a checkpoint that has no recipe where the user has not given a value.
    """
    content = read_file(path)
    try:
        history = content["loss"]["history"].float()
        step, samples = content["step"], content["samples"]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: holds no gate history; name a run folder or checkpoint of train.py") from None
    if history.shape != (3,) or not history.isfinite().all():
        raise UserError(f"{path}: its gate history is {history.tolist()}, not three numbers: train it for a step")
    model = load_model(path, device=device)
    source = {"file": str(path), "step": step, "samples": samples, "fingerprint": model.metadata["fingerprint"]}
    recipe = _recipe(path, content, overrides)
    source |= {"history": history.tolist(), "recipe": asdict(recipe)}
    return Scorer(model, history.to(device), recipe, source)


def _recipe(path: Path, content: dict[str, Any], overrides: dict[str, Any]) -> GateRecipe:
    given = {name: value for name, value in overrides.items() if value is not None}
    recorded = content.get("fingerprint") or content.get("identity") or {}  # the latter until November 2026
    recipe = recorded.get("recipe") or {}
    known: dict[str, Any] = {name: recipe[name] for name in ("gamma_sample", "gamma_pair") if name in recipe}
    has_gates = recipe.get("objective", "alip") == "alip"  # the others are plain CLIP, whose weights are all 1
    for name in ("sample_weight", "text_weight", "caption_weight"):
        known[f"use_{name}"] = has_gates and not recipe.get(f"no_{name}", False)
    values = {**known, **given}
    missing = [field.name for field in fields(GateRecipe) if field.name not in values]
    if missing:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise UserError(f"{path}: does not record the recipe of its gates; give {flags}")
    return GateRecipe(**values)


def check_recipes(scorers: Sequence[Scorer]) -> None:
    """UserError unless all checkpoints have the same settings: averaging others compares unlike weights."""
    if any(one.recipe != scorers[0].recipe for one in scorers):
        raise UserError("the checkpoints were trained with different gates: give --gamma-sample and the others")
