"""Ranks end with the launcher that started them."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from alip.distributed import LAUNCHER, start
from alip.errors import UserError
from alip.train.setup import default_threads

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
