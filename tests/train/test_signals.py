import os
import signal
import sys

import pytest

from alip.distributed import World
from alip.errors import UserError
from alip.train import signals
from alip.train.setup import default_threads
from tests.helpers.ranks import on_ranks
from tests.helpers.train_runs import train_here


def press_twice(gap, monkeypatch):
    """The exit status of a process that gets SIGINT, and again `gap` seconds later; 55 if it was still there."""
    child = os.fork()
    if child == 0:
        stop = signals.StopRequest(World())
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed() and stop.name == "SIGINT"
        later = signals.time.monotonic() + gap
        monkeypatch.setattr(signals.time, "monotonic", lambda: later)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(55)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_second_ctrl_c_leaves_at_once(monkeypatch):
    assert press_twice(1.5, monkeypatch) == 130


def test_one_press_that_arrives_twice_is_one(monkeypatch):
    """The terminal sends it to all, and torchrun passes it on as well."""
    assert press_twice(0.1, monkeypatch) == 55


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    stop = signals.StopRequest(World())
    assert signal.getsignal(signal.SIGTERM) != before and not stop.agreed()
    stop.close()
    assert signal.getsignal(signal.SIGTERM) == before


def _agree(world):
    stop = signals.StopRequest(world)
    answers = []
    for step in range(6):
        if step == 2 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        answers.append(stop.agreed())
    return answers


def test_ranks_stop_at_the_same_step():
    first, *others = on_ranks(3, _agree)
    assert others == [first, first]
    assert first == [False, False, False, True, True, True]


def test_threads_are_a_ranks_share_of_the_cores(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert default_threads() == 1  # set on purpose: torchrun sets it for several processes only
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_threads() == max(1, cores // 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert default_threads() == cores


def test_wandb_without_its_package(flags, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        train_here(*flags, "--output", tmp_path / "run", "--wandb", "alip")
