"""Checkpoints on disk: which are kept, a full disk, files that cannot be read."""

import os
import resource

import pytest
import torch

from alip.errors import UserError
from alip.train import checkpoints
from alip.train.checkpoints import CheckpointFolder, read_checkpoint


def content(step, size=10):
    return {"format": "alip-checkpoint", "version": 1, "step": step, "optimizer": {}, "model": {"w": torch.rand(size)}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def said():
    return []


@pytest.fixture
def folder(tmp_path, said):
    return CheckpointFolder(tmp_path / "checkpoints", keep=2, warn=said.append)


def test_last_ones_every_epochs_and_the_best_are_kept(folder):
    for step in range(1, 8):
        folder.save(content(step), epoch_end=step // 3 if step % 3 == 0 else None, best=step in (2, 4))
    assert names(folder.folder) == ["best.pt", "epoch-0001.pt", "epoch-0002.pt", "step-00000006.pt", "step-00000007.pt"]
    assert read_checkpoint(folder.folder / "best.pt")["step"] == 4
    assert read_checkpoint(folder.folder / "epoch-0001.pt")["step"] == 3
    assert os.stat(folder.folder / "epoch-0002.pt").st_ino == os.stat(folder.folder / "step-00000006.pt").st_ino


def test_file_system_without_hard_links(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
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
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        assert folder.save(content(2, size=100_000)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(folder.folder) == ["step-00000001.pt"]
    assert len(said) == 1
    assert folder.newest_readable()[1]["step"] == 1


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-700])


def damage_empty(path):
    path.write_bytes(b"")


def damage_bits(path):
    data = bytearray(path.read_bytes())
    middle = data.index(torch.load(path, weights_only=True)["model"]["w"].numpy().tobytes())
    data[middle + 17] ^= 0x10  # one bit of one weight: torch.load alone does not notice
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_cut, damage_empty, damage_bits])
def test_unreadable_ones_are_skipped_for_the_one_before(folder, said, damage):
    folder.save(content(1))
    folder.save(content(2))
    damage(folder.folder / "step-00000002.pt")
    path, found = folder.newest_readable()
    assert path.name == "step-00000001.pt" and found["step"] == 1
    assert len(said) == 1 and "step-00000002.pt" in said[0]

    damage(folder.folder / "step-00000001.pt")
    with pytest.raises(UserError, match="none of its 2 checkpoints"):
        folder.newest_readable()


def test_weights_alone_are_no_state(folder, tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="--pretrained"):
        read_checkpoint(tmp_path / "weights.pt")
    assert folder.newest_readable() is None


def test_a_later_version_is_named(folder):
    folder.save({**content(1), "version": 2})
    with pytest.raises(UserError, match="none of its 1"):
        folder.newest_readable()


def test_what_a_lost_part_left_behind(folder, said):
    for step in (1, 2):
        folder.save(content(step))
    (folder.folder / ".step-00000003.pt.77.tmp").write_bytes(b"half")
    folder.clear_unfinished()
    folder.set_aside_after(1)
    assert names(folder.folder) == ["step-00000001.pt", "step-00000002.pt.set-aside"]
    assert checkpoints.CheckpointFolder(folder.folder, 2).newest_readable()[1]["step"] == 1
