"""Real training processes, killed and stopped as machines and people do it."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.ranks import on_ranks
from tests.helpers.train_runs import ROOT, command, events, start, train_here, train_lines, train_on_rank


def wait_for_step(run, step, process, seconds=90):
    """Returns when metrics.jsonl has come to that step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.exists() and re.search(rf'"train", "step": {step},', path.read_text()):
            return
        if process.poll() is not None:
            raise AssertionError(f"ended before step {step}: {process.stdout.read()}")
        time.sleep(0.005)
    raise AssertionError(f"no step {step} within {seconds} s")


def ended(process, seconds=90):
    """(exit status, output) of a process."""
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


@pytest.mark.slow
def test_killed_at_random_steps(flags, tmp_path):
    """SIGKILL, somewhere in a step; tests/soak_kill.py does this any number of times."""
    generator = random.Random(7)
    options = [*flags, "--reader", "dali", "--epochs", "6", "--save-every", "5", "--log-every", "3"]
    assert train_here(*options, "--output", tmp_path / "whole") == 0
    run = tmp_path / "killed"
    for last in (generator.randrange(2, 5) * 3, generator.randrange(7, 10) * 3):
        process = start(command(*options, "--output", run, "--resume", "auto"))
        wait_for_step(run, last, process)
        time.sleep(generator.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        assert ended(process)[0] == -signal.SIGKILL
    status, output = ended(start(command(*options, "--output", run, "--resume", "auto")))
    assert status == 0, output
    assert "resumed at step" in output
    assert train_lines(run) == train_lines(tmp_path / "whole") != []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_saves_at_the_next_step(flags, tmp_path, number):
    options = [*flags, "--epochs", "40", "--save-every", "0", "--output", tmp_path / "run"]
    process = start(command(*options))
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(number)
    status, output = ended(process)
    assert status == 0, output
    stopped = events(tmp_path / "run", "stopped")[0]
    assert stopped["signal"] == number.name
    assert f"step {stopped['step']} and saved; resume with the same command and --resume auto" in output
    assert (tmp_path / "run" / "checkpoints" / f"step-{stopped['step']:08d}.pt").exists()
    assert train_lines(tmp_path / "run")[-1]["step"] == stopped["step"]  # not one step more


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ranks_of(run):
    """Process numbers of the training processes that write into a run folder, not of their launchers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it may end while we look
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                if str(run) in words and any(word.endswith("train.py") for word in words[1:3]):
                    found.append(int(entry.name))
    return sorted(found)


@pytest.mark.slow
def test_two_hosts_lose_a_rank_and_resume(flags, data, model_file, tmp_path):
    """The script for several machines, with an "ssh" that stays here: two launchers that meet on loopback. A rank is
    killed in mid-step; the launchers start both again, and they resume exactly."""
    options = [*flags, "--batch-size", "4", "--save-every", "4", "--dist-timeout", "0.5", "--steps", "36"]
    assert on_ranks(2, train_on_rank, [*options, "--output", tmp_path / "whole"]) == [0, 0]
    ssh, run = tmp_path / "ssh", tmp_path / "run"
    ssh.write_text('#!/bin/bash\nexec bash -c "$2"\n')
    ssh.chmod(0o755)
    settings = {
        **{"HOSTS": "localhost 127.0.0.1", "SSH": str(ssh), "PORT": str(free_port()), "PYTHON": sys.executable},
        **{"DATA": str(data), "OUTPUT": str(run), "MODEL": str(model_file), "PROCESSES": "1", "GLOBAL_BATCH": "8"},
    }
    job = start(["bash", str(ROOT / "scripts/train_yfcc15m_B32_ALIP.sh"), *map(str, options)], **settings)
    wait_for_step(run, 10, job)
    os.kill(ranks_of(run)[1], signal.SIGKILL)
    status, output = ended(job, 150)
    assert status == 0, output
    assert "lost another rank" in output and "resumed at step" in output
    assert train_lines(run) == train_lines(tmp_path / "whole") != []


@pytest.mark.slow
def test_without_restarts_a_lost_rank_brings_the_job_down(flags, tmp_path):
    run = tmp_path / "run"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    options = [*flags, "--batch-size", "4", "--epochs", "100", "--output", run, "--dist-timeout", "0.5"]
    process = start([*words, *command(*options)[1:]])
    wait_for_step(run, 3, process)
    os.kill(ranks_of(run)[1], signal.SIGKILL)
    begun = time.monotonic()
    status, output = ended(process)
    assert status != 0
    assert time.monotonic() - begun < 40  # --dist-timeout is half a minute
    assert "SIGKILL" in output or "Signal 9" in output, output


def test_run_json_records_what_was_done(flags, tmp_path):
    train_here(*flags, "--preset", "alip-released", "--steps", "2", "--output", tmp_path / "run")
    train_here(*flags, "--preset", "alip-released", "--steps", "2", "--output", tmp_path / "run", "--resume", "auto")
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert content["arguments"]["decay_all"] is True and content["recipe"]["grad_clip_norm"] == 16.0
    assert content["data"]["samples"] == 52 and content["data"]["fingerprint"]
    assert content["versions"]["torch"] and content["world_size"] == 1
    assert [entry["resumed_at_step"] for entry in content["starts"]] == [None, 2]
    assert json.loads((tmp_path / "run" / "model.json").read_text())["model_cfg"]["embed_dim"] == 16


def test_scripts_name_what_is_missing():
    for name, words in (("train_yfcc15m_B32_ALIP.sh", "set DATA"), ("train_slurm.sh", "sbatch")):
        done = subprocess.run(["bash", str(ROOT / "scripts" / name)], capture_output=True, text=True)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and words in done.stderr
    wrong = {
        "DATA": "x",
        "INPUT": "x",
        "OUTPUT": "y",
        "PROCESSES": "1",
        "NODES": "two",
        "GPUS": "two",
        "PYTHON": "true",
    }
    for name in ("train_yfcc15m_B32_ALIP.sh", "caption_yfcc15m.sh"):
        words = ["bash", str(ROOT / "scripts" / name)]
        done = subprocess.run(words, env={**os.environ, **wrong}, capture_output=True, text=True)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and "not 'two'" in done.stderr
