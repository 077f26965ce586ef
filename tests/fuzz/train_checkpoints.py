"""A run folder whose newest training checkpoint has a fault: skipped and named, or restored as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from alip.checkpoint import atomic_save
from alip.distributed import World
from alip.train.checkpoints import CheckpointFolder
from alip.train.resume import find_start, restore
from alip.train.state import TrainState
from tests.fuzz import OK, Target
from tests.helpers.checkpoints import content_of, fingerprint_of, make_state, same, write_damaged

OLDER, NEWER = "step-00000001.pt", "step-00000002.pt"


@lru_cache(maxsize=1)
def _runs() -> tuple[dict[str, Any], dict[str, Any], TrainState]:
    return content_of(make_state(steps=1)), content_of(make_state(steps=2)), make_state()


def _damaged_run(generator: random.Random, folder: Path) -> Callable[[], object]:
    older, newer, state = _runs()
    atomic_save(older, folder / OLDER)
    done = write_damaged(folder / NEWER, newer, generator)
    return lambda: _resume(folder, done, older, newer, state)


def _resume(folder: Path, done: str, older: dict[str, Any], newer: dict[str, Any], state: TrainState) -> None:
    warnings: list[str] = []
    checkpoints = CheckpointFolder(folder, 3, warnings.append)
    fingerprint = fingerprint_of(state)
    found = find_start("auto", checkpoints, World(), state.model.state_dict(), fingerprint)
    assert found is not None, done
    restore(state, found, fingerprint, World(), seed=0, epoch_samples=100, force=True)
    if found["step"] == older["step"] and warnings:
        assert len(warnings) == 1 and NEWER in warnings[0] and "\n" not in warnings[0], (done, warnings)
        assert same(content_of(state)["model"], older["model"]), done
    else:
        # A fault that leaves everything usable: what the file holds is what is restored.
        assert not warnings and same(content_of(state)["model"], found["model"]), (done, warnings)
        if " at " in done:  # in bytes: the check sums hold, so the content is what was saved
            assert same(found, newer), done


TARGETS = [Target("training checkpoint", _damaged_run, frozenset({OK}))]
