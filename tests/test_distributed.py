"""Ranks end with the launcher that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from alip import distributed
from alip.distributed import LAUNCHER, start
from alip.errors import UserError
from alip.train.setup import default_threads

ROOT = Path(__file__).resolve().parents[1]

# A launcher that starts one rank, says its process id, and stays.
_LAUNCHER = """
import os, subprocess, sys, time
environment = {**os.environ, sys.argv[1]: str(os.getpid())}
rank = "import time; from alip import distributed; distributed.start('cpu'); print(1, flush=True); time.sleep(300)"
child = subprocess.Popen([sys.executable, "-c", rank], env=environment, stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's signal at a parent's death is Linux's")
def test_a_rank_ends_with_its_killed_launcher():
    launcher = subprocess.Popen([sys.executable, "-c", _LAUNCHER, LAUNCHER], stdout=subprocess.PIPE, text=True)
    rank = int(launcher.stdout.readline())
    assert _runs(rank)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    patience = time.monotonic() + 60
    while _runs(rank) and time.monotonic() < patience:
        time.sleep(0.05)
    try:
        assert not _runs(rank)
    finally:
        if _runs(rank):
            os.kill(rank, signal.SIGKILL)


def test_a_rank_whose_launcher_is_gone_does_not_start(monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setenv(LAUNCHER, str(ended.pid))
    monkeypatch.setattr("ctypes.CDLL", lambda name: _Kernel())  # this process stays as it is
    with pytest.raises(SystemExit, match="launcher"):
        start("cpu")


@pytest.mark.parametrize("device, backend", [("cuda:1", "nccl"), ("cpu", "gloo")])
def test_ranks_on_gpus_name_their_device(device, backend, monkeypatch):
    """NCCL guesses it otherwise, at each barrier."""
    called = {}
    for name, value in {"MASTER_ADDR": "localhost", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("alip.distributed.pick_device", lambda name, local_rank: torch.device(name))
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *a, **k: called.update(k, backend=a[0]))
    world = start(device, timeout_minutes=3)
    assert called.pop("timeout").total_seconds() == 180
    expected = {"backend": backend, "rank": 1, "world_size": 2}
    assert called == expected | ({"device_id": world.device} if backend == "nccl" else {})


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "abc"}, {"RANK": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"LOCAL_RANK": ""}, {"MASTER_PORT": "99999"}],
    ids=str,
)
def test_a_wrong_launcher_variable_is_one_line(variables, monkeypatch):
    """A rank beyond the number of ranks would be waited for."""
    for name, value in {"MASTER_ADDR": "localhost", "RANK": "1", "WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    (name,) = variables
    with pytest.raises(UserError, match=f"the environment variable {name} is "):
        start("cpu")


@pytest.mark.parametrize("name, value", [("OMP_NUM_THREADS", "abc"), ("LOCAL_WORLD_SIZE", "0")])
def test_a_wrong_number_of_threads_is_one_line(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"the environment variable {name} is "):
        default_threads()


class _Kernel:
    def prctl(self, *arguments):
        return 0


def _runs(process: int) -> bool:
    """Whether it is there, and not only waits to be reaped."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


FAILS = """
import time
from alip import distributed, errors
distributed.start = lambda *a: distributed.World(world_size=2)
distributed.stop = lambda: time.sleep(300)  # as NCCL's, while another rank waits for this one
def main():
    with distributed.joined():
        raise {error}
errors.run_command(main)
"""


@pytest.mark.parametrize(
    "error, status, said",
    [
        ("errors.UserError('a broken image')", 2, "error: a broken image\n"),
        ("RuntimeError('a bug')", 1, "RuntimeError: a bug\n"),
        ("KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_a_rank_that_fails_says_so_and_does_not_wait_for_the_others(error, status, said):
    words = [sys.executable, "-c", FAILS.format(error=error)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == status and done.stderr.endswith(said)


WORKS = """
import time
from alip import distributed
with distributed.joined("cpu", timeout_minutes=0.05) as world:
    with distributed.work_of_rank_0(world) as broadcast:
        if world.is_main:
            time.sleep(5)  # longer than a missing rank is waited for
        print(broadcast("the result" if world.is_main else None))
"""


def test_ranks_wait_for_the_work_of_rank_0(tmp_path):
    (tmp_path / "works.py").write_text(WORKS)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "works.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout) == (0, "the result\n" * 2), done.stderr


@pytest.mark.parametrize(
    "found, expected",
    [
        (["a", "a", "b", "b"], 2),
        (["a"] * 4, 4),
        (["a", "b"], 1),
        (["a", "b", "a", "b"], None),
        (["a", "a", "a", "b"], None),
        ([2] * 6, 2),
        ([2] * 5, None),
        ([2, 2, 1], None),
    ],
)
def test_ranks_of_a_machine(monkeypatch, found, expected):
    """By torchrun's variable; without it, as under srun alone, by the machines' names."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if isinstance(found[0], int):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(found[0]))
    monkeypatch.setattr(distributed, "gather_objects", lambda value, world: found)
    world = distributed.World(world_size=len(found))
    if expected is None:
        with pytest.raises(UserError, match="as many ranks on each machine"):
            distributed.ranks_of_a_machine(world)
    else:
        assert distributed.ranks_of_a_machine(world) == expected
