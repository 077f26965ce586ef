"""Resuming: is it the same run, and what cannot be restored exactly?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from alip.data.shards import Manifest
from alip.distributed import World, broadcast_object, gather_objects, launcher_number
from alip.errors import UserError
from alip.files import read_json, real_path
from alip.train.checkpoint_content import check_shapes
from alip.train.checkpoints import CheckpointFolder, read_checkpoint
from alip.train.older_runs import default_before, with_new_names
from alip.train.state import TrainState

# Parts of a run fingerprint. A change in the first three makes it another run; one in the last two is reported.
DECISIVE = ("data", "model", "recipe")
NOTED = ("layout", "numerics")


def create_fingerprint(
    manifest: Manifest,
    model: nn.Module,
    world: World,
    *,
    batch_size: int,
    accum_freq: int,
    recipe: dict[str, Any],
    numerics: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """What distinguishes a run from others, to be compared on a resume; plain values.

    recipe: what decides the result (learning rates, gates, …); numerics: what changes rounding only (precision, …).
    """
    return {
        "data": {"name": manifest.name, "samples": manifest.samples, "fingerprint": manifest.fingerprint},
        "model": model.config,
        "recipe": recipe,
        "layout": {"world_size": world.world_size, "batch_size": batch_size, "accum_freq": accum_freq},
        "numerics": numerics,
    }


def differences(saved: dict[str, Any], now: dict[str, Any], parts: tuple[str, ...]) -> list[str]:
    """ "recipe lr: was 0.001, now 0.002" for every value that differs."""
    found = []
    for part in parts:
        before, after = _flat(with_new_names(saved.get(part, {}))), _flat(now[part])
        for key in sorted(before.keys() | after.keys()):
            old = before[key] if key in before else default_before(part, key)
            if old != after.get(key):
                found.append(f"{part} {key}: was {_shown(old)}, now {_shown(after.get(key))}")
    return found


def _shown(value: Any) -> str:
    return "not given" if value is None else repr(value)


def check_fingerprint(saved: dict[str, Any], now: dict[str, Any], force: bool) -> list[str]:
    """Lines on what differs; raises UserError if that makes it another run, unless forced."""
    decisive = differences(saved, now, DECISIVE)
    if decisive and not force:
        shown = "; ".join(decisive[:4]) + (f"; and {len(decisive) - 4} more" if len(decisive) > 4 else "")
        raise UserError(
            f"the checkpoint is of a run with other settings ({shown}); give that run's own settings, "
            "--resume-force to apply the new ones, or another --output to start again"
        )
    return decisive + differences(saved, now, NOTED)


def find_start(
    resume: str | None,
    folder: CheckpointFolder,
    world: World,
    model: dict[str, torch.Tensor],
    fingerprint: dict[str, Any],
) -> dict[str, Any] | None:
    """The content of the checkpoint to resume from, equal on all ranks, or None to start from the beginning.

    1. `--resume PATH`: that file, or the newest readable one of that run folder.
    2. `--resume auto`: the newest readable one of --output, if there is any.
    3. no --resume: --output must hold no checkpoints, so that nobody's run is overwritten by accident.
    4. Started again by its launcher, after a rank was lost: as `--resume auto`, if there is a checkpoint by then.

    A file counts as readable only if every rank could read it; others are skipped with a warning, on all ranks alike.
    model: this run's state dict. UserError if there are checkpoints, but not one that can be read.
    """
    kind, found = broadcast_object(
        find_candidates(_after_restart(resume, folder), folder) if world.is_main else None, world
    )
    if kind == "error":
        raise UserError(found)
    problems: list[str] = []
    for path in map(Path, found):
        content, problem = _try_to_read(path, model, fingerprint)
        on_ranks = [text for text in gather_objects(problem, world) if text is not None]
        if not on_ranks:
            return content
        del content
        problems.append(on_ranks[0])
        if len(found) > 1:
            folder.warn(f"skipped an unreadable checkpoint: {on_ranks[0]}")
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(
            f"{Path(found[0]).parent}: none of its {len(found)} checkpoints can be read; give a readable one with "
            "--resume PATH, or another --output to start again"
        )
    return None


def _after_restart(resume: str | None, folder: CheckpointFolder) -> str | None:
    """A job that its launcher has started again continues from the newest checkpoint, whatever it was started from."""
    restarted = launcher_number(("TORCHELASTIC_RESTART_COUNT",), 0) > 0
    return "auto" if restarted and folder.steps() else resume


def find_candidates(resume: str | None, folder: CheckpointFolder) -> tuple[str, Any]:
    """("ok", checkpoint files to try, best first) or ("error", why there can be none)."""
    if resume is None and folder.steps():
        return "error", (
            f"{folder.folder.parent} already holds a run (newest checkpoint: {folder.steps()[0].name}); "
            "resume it with --resume auto, or choose another --output"
        )
    if resume in (None, "auto"):
        kept = folder.named()
        if kept and not folder.steps():  # a new run would replace them
            return "error", (
                f"{folder.folder.parent} holds a run's {kept[0].name}, and no step-*.pt to resume from; resume from it "
                f"with --resume {kept[0]}, or choose another --output"
            )
        return "ok", [str(path) for path in folder.steps()]
    path, own = Path(resume), folder.folder.parent
    if not real_path(path).is_relative_to(real_path(own)) and (folder.steps() or folder.named()):
        if folder.steps() and _began_from(own / "run.json", resume):  # the same command again, as of a requeued job
            return "ok", [str(path) for path in folder.steps()]
        return "error", (
            f"{own} already holds another run than {resume}: choose another --output for a run that resumes there, "
            "or continue the one here with --resume auto"
        )
    if path.is_file():
        return "ok", [str(path)]
    run = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = CheckpointFolder(run, 1).steps()
    if not found:
        return "error", f"--resume {resume}: no such checkpoint file, nor a run folder with checkpoints"
    return "ok", [str(path) for path in found]


def _began_from(run: Path, resume: str) -> bool:
    """Whether a run.json lists a start with that --resume."""
    try:
        starts = read_json(run)["starts"]
        return any(start["arguments"]["resume"] == resume for start in starts)
    except (UserError, KeyError, TypeError):  # damaged
        return False


def _try_to_read(
    path: Path, model: dict[str, torch.Tensor], fingerprint: dict[str, Any]
) -> tuple[dict[str, Any] | None, str | None]:
    """(content, None) or (None, what is wrong with the file)."""
    try:
        content = read_checkpoint(path)
        if content["fingerprint"]["model"] == fingerprint["model"]:
            check_shapes(content["model"], model, path)
        return content, None
    except UserError as error:
        return None, str(error)


def restore(
    state: TrainState,
    saved: dict[str, Any],
    fingerprint: dict[str, Any],
    world: World,
    *,
    seed: int,
    epoch_samples: int,
    force: bool,
) -> list[str]:
    """Restores `state` from a checkpoint's content; returns lines on what is not exactly as before."""
    notes = check_fingerprint(saved["fingerprint"], fingerprint, force)
    state.restore(saved, world, seed)
    before, after = saved["fingerprint"]["layout"], fingerprint["layout"]
    if before == after:
        return notes
    old_batch, new_batch = _global_batch(before), _global_batch(after)
    if before["world_size"] != after["world_size"]:
        notes.append("with another number of ranks, dropout is seeded again and sums round differently")
    if old_batch != new_batch:
        where = f"at the same sample ({state.position} of epoch {state.epoch})"
        left = epoch_samples - state.position
        if left < new_batch:
            where = f"with epoch {state.epoch + 1}, as the last {left} samples of epoch {state.epoch} are no whole step"
            state.epoch, state.position = state.epoch + 1, 0
        notes.append(
            f"the batch was {old_batch} and is now {new_batch}: the data continue {where}, the schedule at that point "
            "of its new length"
        )
    return notes


def _global_batch(layout: dict[str, int]) -> int:
    return layout["world_size"] * layout["batch_size"] * layout["accum_freq"]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists and tuples compare alike."""
    flat = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(_flat(item, f"{prefix}{key}."))
        else:
            flat[prefix + str(key)] = list(item) if isinstance(item, tuple) else item
    return flat
