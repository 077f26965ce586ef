"""Checkpoints on disk: which are kept, a full disk, files that cannot be read."""

import copy
import functools
import os
import random
import resource

import pytest
import torch

from alip.distributed import World
from alip.errors import UserError
from alip.train import resume
from alip.train.checkpoints import CheckpointFolder, read_checkpoint
from alip.train.resume import find_start
from tests.fuzz import OK, run_case
from tests.fuzz.train_checkpoints import TARGETS
from tests.helpers.checkpoints import content_of, fingerprint_of, make_state
from tests.helpers.ranks import on_ranks


@functools.cache
def whole():
    return content_of(make_state(steps=1))


def content(step, size=0):
    return {**whole(), "step": step, "padding": torch.zeros(size)}


def newest_readable(folder):
    state = make_state()
    return find_start("auto", folder, World(), state.model.state_dict(), fingerprint_of(state))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def said():
    return []


@pytest.fixture
def folder(tmp_path, said):
    return CheckpointFolder(tmp_path / "checkpoints", keep=2, warn=said.append)


def test_newest_and_the_best_are_kept(folder):
    for step in range(1, 8):
        folder.save(content(step), epoch_end=step // 3 if step % 3 == 0 else None, best=step in (2, 4))
    assert names(folder.folder) == ["best.pt", "step-00000006.pt", "step-00000007.pt"]
    assert read_checkpoint(folder.folder / "best.pt")["step"] == 4


def test_a_copy_under_another_name_is_no_checkpoint_of_the_run(folder):
    """It was taken for the newest one: then it was resumed from, and others were removed in its place."""
    folder.save(content(1))
    copy = folder.folder / "step-00000001-good.pt"
    copy.write_bytes(b"another state")
    for step in (2, 3, 4):
        folder.save(content(step))
    assert names(folder.folder) == [copy.name, "step-00000003.pt", "step-00000004.pt"]
    folder.set_aside_after(3)
    assert [path.name for path in folder.steps()] == ["step-00000003.pt"]


def test_every_second_epoch_is_kept(folder):
    folder.keep_epochs = 2
    for step in range(1, 14):
        folder.save(content(step), epoch_end=step // 3 if step % 3 == 0 else None)
    assert names(folder.folder) == ["epoch-0002.pt", "epoch-0004.pt", "step-00000012.pt", "step-00000013.pt"]
    assert read_checkpoint(folder.folder / "epoch-0002.pt")["step"] == 6
    assert os.stat(folder.folder / "epoch-0004.pt").st_ino == os.stat(folder.folder / "step-00000012.pt").st_ino


def test_file_system_without_hard_links(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder.keep_epochs = 1
    folder.save(content(3), epoch_end=1)
    assert read_checkpoint(folder.folder / "epoch-0001.pt")["step"] == 3


def test_full_disk_keeps_the_older_ones(folder, said, monkeypatch):
    folder.save(content(1))
    folder.save(content(2))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)  # inside atomic_save
        assert folder.save(content(3), epoch_end=1, best=True) is None
    assert names(folder.folder) == ["step-00000001.pt", "step-00000002.pt"]  # nothing half, nothing lost
    assert len(said) == 1 and "step 3 was not saved" in said[0] and "No space left" in said[0]
    assert folder.save(content(4))
    assert names(folder.folder) == ["step-00000002.pt", "step-00000004.pt"]


def test_disk_that_ends_in_the_middle_of_a_file(folder, said):
    """A real limit in the kernel: writing stops with an error after so many bytes of the file."""
    folder.save(content(1))
    whole_size = (folder.folder / "step-00000001.pt").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole_size + 50_000, hard))
    try:
        assert folder.save(content(2, size=100_000)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(folder.folder) == ["step-00000001.pt"]
    assert len(said) == 1
    assert newest_readable(folder)["step"] == 1


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-700])


def damage_empty(path):
    path.write_bytes(b"")


def damage_bits(path):
    data = bytearray(path.read_bytes())
    middle = data.index(torch.load(path, weights_only=True)["model"]["text_projection"].numpy().tobytes())
    data[middle + 17] ^= 0x10  # one bit of one weight: torch.load alone does not notice
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_cut, damage_empty, damage_bits])
def test_unreadable_ones_are_skipped_for_the_one_before(folder, said, damage):
    folder.save(content(1))
    folder.save(content(2))
    damage(folder.folder / "step-00000002.pt")
    assert newest_readable(folder)["step"] == 1
    assert len(said) == 1 and "step-00000002.pt" in said[0]

    damage(folder.folder / "step-00000001.pt")
    with pytest.raises(UserError, match="none of its 2 checkpoints"):
        newest_readable(folder)


def test_weights_alone_are_no_state(folder, tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="--pretrained"):
        read_checkpoint(tmp_path / "weights.pt")
    assert newest_readable(folder) is None


def test_a_later_version_is_named(folder):
    folder.save({**content(1), "version": 2})
    with pytest.raises(UserError, match="version 2, this code reads version 1"):
        newest_readable(folder)


def test_what_a_lost_part_left_behind(folder, said):
    for step in (1, 2):
        folder.save(content(step))
    (folder.folder / ".step-00000003.pt.77.tmp").write_bytes(b"half")
    folder.clear_unfinished()
    folder.set_aside_after(1)
    assert names(folder.folder) == ["step-00000001.pt", "step-00000002.pt.set-aside"]
    assert newest_readable(folder)["step"] == 1


@pytest.mark.parametrize("seed", range(40))
def test_random_faults(tmp_path, seed):
    """A seeded few of what tests/soak_fuzz.py does by the thousand."""
    (target,) = TARGETS
    assert run_case(target.make(random.Random(seed), tmp_path), target.allowed) == OK


def set_nan(saved):
    saved["model"]["text_projection"][1, 1] = float("nan")


def set_other_shape(saved):
    saved["model"]["text_projection"] = torch.zeros(3, 3)
    saved["ema"]["text_projection"] = torch.zeros(3, 3)
    number = saved["optimizer"]["names"].index("text_projection")
    saved["optimizer"]["state"][number] |= {"exp_avg": torch.zeros(3, 3), "exp_avg_sq": torch.zeros(3, 3)}


def set_sparse(saved):
    saved["model"]["text_projection"] = saved["model"]["text_projection"].to_sparse()


def set_meta(saved):
    saved["optimizer"]["state"][0]["exp_avg"] = saved["optimizer"]["state"][0]["exp_avg"].to("meta")


def set_too_large_a_step(saved):
    saved["optimizer"]["state"][0]["step"] = 10**400


def set_too_large_a_scale(saved):
    saved["scaler"] = {"scale": 10**400}


def set_too_large_a_best(saved):
    saved["best"] = {"x": 10**400}


def set_none(saved):
    saved["model"] = None


def set_other_generator(saved):
    saved["ranks"][0]["rng"]["torch"] = torch.zeros(5, dtype=torch.uint8)


@pytest.mark.parametrize(
    "spoil",
    [
        *(set_nan, set_other_shape, set_sparse, set_meta, set_none, set_other_generator),
        *(set_too_large_a_step, set_too_large_a_scale, set_too_large_a_best),
    ],
)
def test_contents_that_cannot_be_restored_are_skipped(folder, said, spoil):
    folder.save(content(1))
    spoiled = copy.deepcopy(content(2))
    spoil(spoiled)
    folder.save(spoiled)
    assert newest_readable(folder)["step"] == 1
    assert len(said) == 1 and "step-00000002.pt" in said[0]


def _steps_of_ranks(world, run):
    """Rank 1 cannot read the newest: its disk fails."""
    if world.rank == 1:
        original = resume.read_checkpoint

        def failing(path):
            if path.name == "step-00000002.pt":
                raise UserError(f"{path}: truncated")
            return original(path)

        resume.read_checkpoint = failing  # in a process of its own
    state, said = make_state(), []
    found = find_start(
        "auto", CheckpointFolder(run, 2, said.append), world, state.model.state_dict(), fingerprint_of(state)
    )
    return found["step"], len(said)


def test_ranks_choose_the_same_one(folder):
    for step in (1, 2):
        folder.save(content(step))
    assert on_ranks(2, _steps_of_ranks, folder.folder) == [(1, 1), (1, 1)]


def test_checkpoint_of_an_earlier_version(folder):
    """Its keys identity, ema_updates and reader, and an optimizer's state without names."""
    saved = content(1)
    names = {"fingerprint": "identity", "ema_steps": "ema_updates"}
    old = {names.get(key, key): value for key, value in saved.items()}
    old["reader"] = {"epoch": 0, "position": 4, "seed": 0, "data": "abc"}
    old["optimizer"] = {key: saved["optimizer"][key] for key in ("state", "param_groups")}
    folder.save(old)
    found = newest_readable(folder)
    assert found["fingerprint"] == saved["fingerprint"] and found["ema_steps"] == 1 and "reader" not in found
    state = make_state()
    state.restore(found, World(), seed=0)
    assert all(torch.equal(value, saved["model"][key]) for key, value in state.model.state_dict().items())
