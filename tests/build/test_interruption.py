"""A build that is stopped at any moment: the same command finishes it, with the same bytes."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alip.build import shuffle
from alip.build.journal import Journal
from alip.data.shards import load_manifest
from alip.errors import UserError
from tests.helpers.shards import ROOT, build_shards, make_tars


class Killed(BaseException):
    """Stands for SIGKILL."""


class Events:
    """Counts what changes the disk, and kills before or after number `fatal` of them."""

    def __init__(self, monkeypatch, fatal: int):
        self.seen, self.fatal = 0, fatal
        for owner, name in [
            (os, "replace"),
            (os, "fsync"),
            (os, "truncate"),
            (os, "unlink"),
            (os, "rmdir"),
            (Path, "unlink"),
            (shutil, "copyfile"),
            (Journal, "add"),
        ]:
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, real):
        def call(*arguments, **options):
            self.check()
            result = real(*arguments, **options)
            self.check()
            return result

        return call

    def check(self):
        self.seen += 1
        if self.fatal <= self.seen:  # nothing that comes after a kill happens
            raise Killed


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("seed", [None, 7], ids=["in order", "shuffled"])
def test_killed_at_every_change_of_the_disk(tmp_path, monkeypatch, seed, overwrite):
    monkeypatch.setattr(shuffle, "FILES", 2)
    make_tars(tmp_path / "tars", 9, per_tar=5, broken=(4, 8))
    options = {"samples_per_shard": 3, "shuffle_seed": seed}
    build_shards(tmp_path / "tars", tmp_path / "whole" / "set", **options)
    whole = contents(tmp_path / "whole")
    fatal = 0
    while True:
        fatal += 3 if overwrite else 1  # every event where nothing was there before, a third of them otherwise
        output = tmp_path / f"cut-{fatal}" / "set"
        if overwrite:  # what is there is complete, of another size
            build_shards(tmp_path / "tars", output, samples_per_shard=2, shuffle_seed=1)
        with monkeypatch.context() as patch:
            Events(patch, fatal)
            try:
                build_shards(tmp_path / "tars", output, overwrite=overwrite, **options)
                done = True
            except Killed:
                done = False
        if output.with_suffix(".json").exists():  # what is called complete is complete
            for number in range(len(load_manifest(output).shards)):
                load_manifest(output).open_shard(number).close()
        if overwrite and not done:
            try:  # without the flag: the same, or one line
                build_shards(tmp_path / "tars", output, **options)
            except UserError as error:
                assert "give --overwrite" in str(error)
                build_shards(tmp_path / "tars", output, overwrite=True, **options)
        build_shards(tmp_path / "tars", output, **options)
        assert contents(output.parent) == whole, f"killed at event {fatal}"
        shutil.rmtree(output.parent)
        if done:
            break
    assert fatal > 40


def command(folder: Path, *more: str) -> list[str]:
    options = ["--input", "tars", "--output", "out/set", "--samples-per-shard", "40", "--quiet", *more]
    return [sys.executable, "-W", "ignore", str(ROOT / "data2rec.py"), *options]


@pytest.mark.slow
def test_killed_and_started_again_at_once(tmp_path):
    """The workers outlive their parent for a moment; they must not keep the work folder locked."""
    make_tars(tmp_path / "tars", 1500, per_tar=100)
    run = subprocess.Popen(command(tmp_path, "--workers", "2"), cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/*.rec")) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    again = subprocess.run(command(tmp_path, "--workers", "0"), cwd=tmp_path, capture_output=True, text=True)
    run.wait()
    assert run.returncode == -signal.SIGKILL
    assert again.returncode == 0 and "1,500 samples" in again.stdout, again.stderr


@pytest.mark.slow
def test_overwrite_leaves_a_running_build_alone(tmp_path, monkeypatch):
    make_tars(tmp_path / "tars", 1500, per_tar=100)
    run = subprocess.Popen(command(tmp_path, "--workers", "1"), cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/*.rec")) and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(run.pid, signal.SIGSTOP)  # so that it cannot end before the second one gives up
        other = subprocess.run(command(tmp_path, "--overwrite"), cwd=tmp_path, capture_output=True, text=True)
        assert other.returncode == 2 and f"process {run.pid} on " in other.stderr
        os.kill(run.pid, signal.SIGCONT)
        assert run.wait(60) == 0 and load_manifest(tmp_path / "out" / "set").samples == 1500
    finally:
        run.kill()


def test_a_size_limit_on_files_is_one_line(tmp_path):
    make_tars(tmp_path / "tars", 60)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    done = subprocess.run(
        command(tmp_path, "--workers", "0"), cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "size limit" in done.stderr
    whole = subprocess.run(command(tmp_path, "--workers", "0"), cwd=tmp_path, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    make_tars(tmp_path / "tars", 2)
    (tmp_path / "out").write_text("a file")
    done = subprocess.run(command(tmp_path, "--workers", "0"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
