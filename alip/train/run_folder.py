"""A run's folder: opening it, and run.json and model.json in it (what was asked, with what, on what)."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from alip.distributed import World, broadcast_object
from alip.errors import UserError
from alip.files import read_json, write_json
from alip.remote.urls import redact_all
from alip.train.accumulate import uses_batch_statistics
from alip.train.checkpoints import CheckpointFolder
from alip.train.logging import RunLog
from alip.train.optimizer import count_parameters
from alip.train.plan import Plan
from alip.train.resume import find_start, restore
from alip.train.setup import seed_rank
from alip.train.state import TrainState

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "nvidia-dali-cuda130", "numpy")


@dataclass
class Run:
    """An open run: its folder, its log and its checkpoints, and its fingerprint (see create_fingerprint).

    saved_at: the step at which it resumed, if its own checkpoints hold that.
    """

    folder: Path
    log: RunLog
    checkpoints: CheckpointFolder
    fingerprint: dict[str, dict[str, Any]]
    saved_at: int | None = None


def open_run(
    state: TrainState,
    fingerprint: dict[str, dict[str, Any]],
    plan: Plan,
    world: World,
    *,
    folder: Path,
    settings: dict[str, Any],
    resume: str | None,
    force: bool,
    seed: int,
    keep: int,
    keep_epochs: int,
    wandb: str | None,
    tensorboard: bool = True,
) -> Run:
    """Starts a run in `folder`, or restores `state` from what the run there has saved. All ranks call it.

    settings: the resolved arguments, for run.json. resume: None, "auto" or a path; force: though it is another run.
    keep: number of newest checkpoints to keep; keep_epochs: keep every such epoch's, 0 for none.
    wandb: the project to report to, if any.
    """
    settings = redact_all(settings)
    warnings = _warnings(state, plan)
    checkpoints = CheckpointFolder(folder / "checkpoints", keep, warnings.append, keep_epochs)
    saved = find_start(resume, checkpoints, world, state.model.state_dict(), fingerprint)
    notes: list[str] = []
    if saved is None:
        seed_rank(seed, world.rank)
    else:
        notes = restore(state, saved, fingerprint, world, seed=seed, epoch_samples=plan.epoch_samples, force=force)
    resumed_at = state.step if saved is not None else None
    if world.is_main:
        checkpoints.clear_unfinished()
        checkpoints.set_aside_after(state.step)
        # A kill between a checkpoint and its further names has left these out.
        ended = state.epoch if state.step and state.position == 0 else None
        checkpoints.add_names(state.step, ended, best=state.best.get("step") == state.step)
        write_run(folder, settings, fingerprint, world.world_size, resumed_at, [*warnings, *notes])

    log = RunLog(
        folder,
        plan.last_step(state),
        enabled=world.is_main,
        after_step=state.step,
        tensorboard=tensorboard,
        wandb_project=wandb,
        settings=settings,
    )
    checkpoints.warn = lambda text: log.say(f"warning: {text}")
    _announce(log, state, plan, fingerprint, warnings, notes, resumed_at)
    own = resumed_at is not None and broadcast_object(checkpoints.path(state.step).is_file(), world)
    return Run(folder, log, checkpoints, fingerprint, resumed_at if own else None)


def _warnings(state: TrainState, plan: Plan) -> list[str]:
    if plan.accum_freq == 1 or not uses_batch_statistics(state.model):
        return []
    return [
        "this model uses batch statistics (BatchNorm): with --accum-freq they are each micro-batch's own, so the step "
        "is not exactly that of one big batch (negatives and gates are shared all the same)"
    ]


def _announce(
    log: RunLog,
    state: TrainState,
    plan: Plan,
    fingerprint: dict[str, dict[str, Any]],
    warnings: list[str],
    notes: list[str],
    resumed_at: int | None,
) -> None:
    """The first lines of the log: started or resumed, and what is not as expected."""
    position = {"step": state.step, "epoch": state.epoch, "samples": state.samples}
    for text in warnings:
        log.event(position, "warning", message=f"warning: {text}")
    if resumed_at is None:
        log.event(position, "started", message=_opening(state, fingerprint, plan))
        return
    log.event(position, "resumed", notes=notes, message=f"resumed at step {state.step} of {plan.last_step(state)}")
    for note in notes:
        log.say(f"note: {note}")


def _opening(state: TrainState, fingerprint: dict[str, dict[str, Any]], plan: Plan) -> str:
    every, trained = count_parameters(state.model)
    model = f"{every / 1e6:.1f} M parameters" if trained == every else f"{trained:,} of {every / 1e6:.1f} M parameters"
    layout, data = fingerprint["layout"], fingerprint["data"]
    parts = f"{layout['batch_size']} x {layout['accum_freq']} x {layout['world_size']} ranks"
    return (
        f"training {model} on {data['samples']} samples of {data['name']}: "
        f"{plan.total} steps of {plan.global_batch} ({parts}), {plan.steps_per_epoch} an epoch, "
        f"{fingerprint['numerics']['precision']}"
    )


def write_run(
    folder: Path,
    arguments: dict[str, Any],
    fingerprint: dict[str, Any],
    world_size: int,
    resumed_at: int | None,
    notes: list[str],
) -> None:
    """Writes run.json and model.json. A resumed run keeps what was there and adds itself to `starts`."""
    path = folder / "run.json"
    now = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "arguments": arguments,
        "world_size": world_size,
        "resumed_at_step": resumed_at,
        "notes": notes,
        "versions": versions(),
        "git_revision": git_revision(),
        "machine": machine(),
    }
    starts = _earlier_starts(path, notes) if resumed_at is not None and path.exists() else []
    content = {**now, "data": fingerprint["data"], "recipe": fingerprint["recipe"], "starts": [*starts, now]}
    write_json(path, content, default=str)
    write_json(folder / "model.json", fingerprint["model"])


def _earlier_starts(path: Path, notes: list[str]) -> list[Any]:
    """The starts that a run.json lists; a damaged one is no reason not to resume, and is noted in the new one."""
    try:
        starts = read_json(path).get("starts")
        if isinstance(starts, list):
            return starts
        problem = f"{path}: has no list of starts"
    except UserError as error:
        problem = str(error)
    notes.append(f"the earlier starts of this run are lost: {problem}")
    return []


def versions() -> dict[str, str]:
    """Python and the packages that decide what is computed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision() -> str | None:
    """The revision of this code, with "+changes" if it was edited since; None outside a git checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        # Without the lock: a git that is killed while it holds it would stop all later git commands of the user.
        words = ("git", "--no-optional-locks", *words)
        done = subprocess.run(words, cwd=here, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # not a checkout of another project that this is installed in
        revision = git("rev-parse", "HEAD")
        return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """What rank 0 runs on."""
    found: dict[str, Any] = {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
