"""`train.py --check`: what a command line would run, and whether it can begin; nothing is trained, nothing written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alip.distributed import World, broadcast_object
from alip.errors import UserError
from alip.files import real_path
from alip.folder_lock import LOCK, lock_folder
from alip.train.checkpoints import CheckpointFolder
from alip.train.evaluation import Evaluation
from alip.train.optimizer import count_parameters
from alip.train.plan import Plan
from alip.train.resume import check_fingerprint, find_start
from alip.train.schedule import Schedule
from alip.train.state import TrainState

_PASSED = "check        passed: nothing was trained or written"
_COPIES = 3  # of the weights in a checkpoint: themselves, and AdamW's two moments; the EMA's come to these


def describe(
    model_name: str,
    model: nn.Module,
    data: Any,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    plan: Plan,
    evaluations: Sequence[Evaluation],
    world: World,
    precision: str,
    compiled: bool,
) -> list[str]:
    """Lines about a run: model, data, batch, optimizer, schedule, machine, evaluations."""
    every, trained = count_parameters(model)
    micro = plan.global_batch // (plan.accum_freq * world.world_size)
    several = getattr(data, "captions_per_image", 1)
    captions = f" with up to {several} captions" if several > 1 else ""
    names = ", ".join(evaluation.name for evaluation in evaluations) or "none"
    return [
        f"model        {model_name}: {every / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained",
        f"data         {data.folder / data.name}: {data.samples} samples{captions}, fingerprint {data.fingerprint}",
        f"batch        {plan.global_batch} ({micro} x {plan.accum_freq} micro-batches x {world.world_size} ranks)",
        f"length       {plan.total} steps, {plan.steps_per_epoch} an epoch",
        f"optimizer    {type(optimizer).__name__}: {_settings(optimizer)}",
        f"schedule     {schedule.kind}, learning rate at most {schedule.peak:g}, {schedule.warmup} steps of warm-up",
        f"machine      {world.device}, {precision}, {'compiled towers, ' if compiled else ''}"
        f"{torch.get_num_threads()} CPU threads",
        f"evaluations  {names}",
    ]


def _settings(optimizer: torch.optim.Optimizer) -> str:
    """The settings of its groups: once where they agree."""
    groups = optimizer.param_groups
    words = []
    for name in groups[0]:
        values = [group.get(name) for group in groups]
        if name not in ("params", "lr") and values[0] is not None and values[0] is not False:
            words.append(f"{name} {values[0]}" if values.count(values[0]) == len(values) else f"{name} {values}")
    return ", ".join(words)


def check_start(
    folder: Path,
    loader: Any,
    state: TrainState,
    fingerprint: dict[str, Any],
    world: World,
    *,
    resume: str | None,
    force: bool,
    seed: int,
    **others: Any,
) -> list[str]:
    """Lines about how the run would begin; UserError where it cannot. Reads one batch, and restores the checkpoint.

    resume, force, seed and others: as for `alip.train.run_folder.open_run`.
    """
    batch = next(iter(loader.epoch(0)))
    lines = [f"first batch  images {tuple(batch.image.shape)}, texts {tuple(batch.text_tokens.shape)}, decoded"]
    checkpoints = CheckpointFolder(folder / "checkpoints", 1, warn=lambda text: lines.append(f"warning      {text}"))
    saved = find_start(resume, checkpoints, world, state.model.state_dict(), fingerprint)
    if saved is None:
        return [*lines, "start        from the beginning", _PASSED]
    lines += [f"note         {text}" for text in check_fingerprint(saved["fingerprint"], fingerprint, force)]
    state.restore(saved, world, seed)
    return [*lines, f"start        resumes at step {saved['step']}", _PASSED]


def show(lines: Sequence[str], world: World) -> None:
    """Prints on rank 0."""
    if world.is_main:
        print("\n".join(lines), flush=True)


def check_free(folder: Path, world: World) -> None:
    """UserError where another run is at work in the output folder. All ranks call it."""
    if broadcast_object((folder / LOCK).exists(), world):
        with lock_folder(folder, world):
            pass


def check_output(folder: Path, model: nn.Module, ema: bool) -> list[str]:
    """Lines about the output folder; UserError where nothing can be written. ema: averaged weights are saved, too."""
    existing = next(parent for parent in (folder, *real_path(folder).parents) if parent.exists())
    if not existing.is_dir():
        raise UserError(f"--output {folder}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--output {folder}: {existing} is not writable for this user; choose another folder")
    size = (_COPIES + ema) * sum(value.numel() * value.element_size() for value in model.state_dict().values())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise UserError(
            f"--output {folder}: a checkpoint takes about {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there"
        )
    return [f"output       {folder}: a checkpoint takes about {size / 1e9:.2f} GB, {free / 1e9:.1f} GB are free"]
