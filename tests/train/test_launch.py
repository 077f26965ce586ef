"""The launchers: a mistake is one line and status 2, from the check or from a rank; crashes are restarted."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from alip import distributed
from alip.distributed import World
from alip.errors import UserError
from alip.train import launch
from alip.train.arguments import parse_arguments
from alip.train.preflight import check_command
from alip.train.signals import StopRequest
from tests.helpers.train_runs import ROOT, train_here

PAPER, SLURM = ROOT / "scripts/train_yfcc15m_B32_ALIP.sh", ROOT / "scripts/train_slurm.sh"


def run(*words, **settings):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "PROCESSES": "2", **settings}
    return subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True, timeout=300)


def executable(path, text):
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return path


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder in front of PATH with an srun, a scontrol and an ssh that run here and note their calls in `calls`."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    note = f'echo "${{0##*/}} $*" >> {tmp_path}/calls\n'
    executable(tmp_path / "scontrol", note + "echo node7; echo node8\n")
    executable(
        tmp_path / "srun",
        note + f'echo "cores $SRUN_CPUS_PER_TASK" >> {tmp_path}/calls\nshift; SLURM_NODEID=1 exec "$@"\n',
    )
    executable(tmp_path / "ssh", note.replace("$*", "$1") + 'exec bash -c "$2"\n')
    return tmp_path


SLURM_JOB = {
    **{"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"},
    **{"SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "64", "SLURM_SUBMIT_DIR": str(ROOT)},
}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"DATA": "/nowhere/x"}, "/nowhere/x"),
        ({"DATA": "/nowhere/x", "HOSTS": "one two"}, "/nowhere/x"),
        ({"GLOBAL_BATCH": "7"}, "multiple"),
        ({"GLOBAL_BATCH": "1000", "MICRO_BATCH": "500"}, "52"),
        ({"MODEL": "no-such-model"}, "no-such-model"),
        ({"MICRO_BATCH": "3"}, "not a multiple of 3 samples"),
        ({"MICRO_BATCH": "auto"}, "needs a CUDA device"),
        ({"OUTPUT": "/proc/run"}, "/proc"),
        ({"SHUTDOWN_S": "-5"}, "--shutdown-timeout -5: give a number from 0 on"),
        ({"MAX_RESTARTS": "-1"}, "--max-restarts -1"),
        ({"PORT": "99999", "NODES": "2"}, "--rdzv-endpoint localhost:99999: write HOST:PORT"),
        ({"PYTHON": "/nowhere/python"}, "PYTHON=/nowhere/python: there is no such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line(cluster, data, model_file, settings, words):
    output = str(cluster / "run")
    known = {"DATA": str(data), "MODEL": str(model_file), "OUTPUT": output, "GLOBAL_BATCH": "8", "MICRO_BATCH": "4"}
    done = run("bash", PAPER, "--device", "cpu", **{**known, **settings})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr and done.stdout == ""
    assert not (cluster / "run").exists()
    calls = (cluster / "calls").read_text() if (cluster / "calls").exists() else ""
    assert calls == ("ssh one\n" if "HOSTS" in settings else "")  # one machine is asked, before any rank starts


def test_hosts_that_are_none_and_a_host_that_fails(cluster):
    done = run("bash", PAPER, DATA="d", HOSTS=" ")
    assert (done.returncode, done.stdout) == (2, "") and "HOSTS names no machine" in done.stderr
    executable(cluster / "ssh", "exit 255\n")
    done = run("bash", PAPER, DATA="d", HOSTS="one two")
    assert (done.returncode, done.stderr) == (255, "error: one: the check there ended with status 255\n")


def test_a_mistake_in_a_slurm_job_starts_nothing(cluster):
    done = run("bash", SLURM, DATA="/nowhere/x", OUTPUT=str(cluster / "run"), **SLURM_JOB)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "/nowhere/x" in done.stderr
    assert "srun" not in (cluster / "calls").read_text()


def test_a_slurm_job_whose_nodes_have_no_names(cluster):
    executable(cluster / "scontrol", "echo scontrol: error: no such host >&2; exit 1\n")
    done = run("bash", SLURM, DATA="d", **SLURM_JOB)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert 'scontrol show hostnames "node[7-8]"' in done.stderr and not (cluster / "calls").exists()


def test_what_a_slurm_job_starts(cluster):
    python = executable(cluster / "python", f'echo "python $*" >> {cluster}/calls\n')
    settings = {**SLURM_JOB, "DATA": "d", "PYTHON": str(python)}
    settings["PROCESSES"] = "2"
    assert run("bash", SLURM, "--lr", "1e-4", **settings).returncode == 0
    calls = (cluster / "calls").read_text().splitlines()
    assert [line.split()[0] for line in calls] == ["scontrol", "python", "srun", "cores", "python"]
    check_first, launched = calls[1], calls[4]
    assert "--check-only" in check_first and "--check-only" not in launched
    assert calls[3] == "cores 64"
    assert "--shutdown-timeout 110" in launched and "--rdzv-endpoint node7:20007" in launched
    assert "--nnodes 2 --node-rank 1" in launched and "--nproc-per-node 2" in launched
    assert launched.endswith("--lr 1e-4") and "--batch-size auto --global-batch-size 4096" in launched


def test_several_machines_each_start_their_part(cluster):
    python = executable(cluster / "python", f'echo "python $*" >> {cluster}/calls\n')
    done = run("bash", PAPER, "--lr", "1e-4", DATA="a b", HOSTS="one two", PYTHON=str(python))
    assert done.returncode == 0
    calls = (cluster / "calls").read_text().splitlines()
    assert calls[0] == "ssh one" and "--check-only" in calls[1]
    launched = sorted(line for line in calls[2:] if line.startswith("python"))
    assert [f"--node-rank {k}" in line for k, line in enumerate(launched)] == [True, True]
    assert all("--train-data a b --model" in line and line.endswith("--lr 1e-4") for line in launched)


RANK = """
import os, pathlib, sys, time
from alip.errors import UserError, run_command
folder = pathlib.Path(sys.argv[1])
rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
(folder / f"started-{rank}-{restarts}").write_text("")
def main():
    if rank == 1:
        if sys.argv[2] == "mistake":
            raise UserError("record 7 of x.rec is damaged")
        if sys.argv[2] == "crash" or (sys.argv[2] == "crash-once" and restarts == 0):
            raise RuntimeError("a bug")
    elif sys.argv[2] != "fine" and not (sys.argv[2] == "crash-once" and restarts == 1):
        time.sleep(60)
run_command(main)
"""


@pytest.mark.parametrize(
    "what, restarts, status, starts",
    [("fine", 3, 0, 2), ("mistake", 3, 2, 2), ("mistake", 0, 2, 2), ("crash-once", 3, 0, 4), ("crash", 0, 1, 2)],
)
def test_only_crashes_are_restarted(tmp_path, what, restarts, status, starts):
    (tmp_path / "rank.py").write_text(RANK)
    words = [sys.executable, "-m", "alip.train.launch", "--standalone", "--nproc-per-node", "2"]
    done = run(*words, "--max-restarts", restarts, tmp_path / "rank.py", tmp_path, what)
    assert done.returncode == status, done.stderr
    assert len(list(tmp_path.glob("started-*"))) == starts
    if what == "fine":
        assert done.stderr == ""
    if what == "mistake":
        assert done.stderr.splitlines() == ["error: [rank 1] record 7 of x.rec is damaged"]
    if what.startswith("crash"):
        assert "RuntimeError: a bug" in done.stderr and "ChildFailedError" not in done.stderr


COLLECTIVE = """
import os, signal, torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))  # ends with rank 1
total = torch.ones(1)
dist.all_reduce(total)
os.write(1, b"after the restart %d\\n" % int(total))  # in one piece
dist.destroy_process_group()
"""


def test_ranks_of_one_machine_find_each_other_after_a_restart(tmp_path):
    """Each start needs a store of its own: in the first one are the addresses of the dead."""
    (tmp_path / "rank.py").write_text(COLLECTIVE)
    words = [sys.executable, "-m", "alip.train.launch", "--standalone", "--nproc-per-node", "2"]
    done = run(*words, "--max-restarts", 1, tmp_path / "rank.py")
    assert (done.returncode, done.stdout) == (0, "after the restart 2\n" * 2), done.stderr


def test_the_check_does_nothing_for_a_good_command(flags, tmp_path):
    check_command(parse_arguments([*map(str, flags), "--output", str(tmp_path / "new" / "run")]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong, ranks, message",
    [
        (["--train-data", "no/such/data"], 1, "no/such/data"),
        (["--model", "no-such-model"], 1, "no-such-model"),
        (["--device", "tpu"], 1, "--device tpu"),
        (["--eval-retrieval", "no-such-set"], 1, "no-such-set"),
        (["--resume", "no/such/file"], 1, "no/such/file"),
        (["--mismatch-column", "no_such_column"], 1, "no true or false in 'no_such_column'"),
        ([], 7, "a step takes 56 samples"),
    ],
)
def test_what_the_check_finds(flags, tmp_path, wrong, ranks, message):
    with pytest.raises(UserError, match=message):
        check_command(parse_arguments([*map(str, flags), "--output", str(tmp_path / "run"), *wrong]), ranks)


def test_the_check_finds_a_run_that_is_there_already(flags, tmp_path):
    options = [*map(str, flags), "--steps", "1", "--output", str(tmp_path / "run")]
    train_here(*options)
    with pytest.raises(UserError, match="already holds a run"):
        check_command(parse_arguments(options))
    check_command(parse_arguments([*options, "--resume", "auto"]))


def test_the_check_opens_the_checkpoint(flags, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    options = [*map(str, flags), "--steps", "1", "--output"]
    train_here(*options, str(run))
    for resume in ("auto", str(run)):
        words = [*options, str(run if resume == "auto" else other), "--resume", resume, "--lr", "0.5"]
        with pytest.raises(UserError, match=r"recipe lr: was 0\.001, now 0\.5"):
            check_command(parse_arguments(words))
        check_command(parse_arguments([*words, "--resume-force"]))
    (checkpoint,) = (run / "checkpoints").glob("*.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(UserError, match="truncated"):
        check_command(parse_arguments([*options, str(other), "--resume", str(run)]))
    assert not other.exists()


def test_a_launcher_may_show_each_rank_its_own_gpu_only(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for visible, expected in ((1, 0), (4, 3), (8, 3)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda visible=visible: visible)
        assert distributed.pick_device("auto", local_rank=3) == torch.device("cuda", expected) == current[-1]
    with pytest.raises(UserError, match="no GPU 9"):
        distributed.pick_device("cuda:9")


def test_every_process_group_obeys_the_timeout(monkeypatch):
    made = []
    monkeypatch.setattr(dist, "new_group", lambda **options: made.append(options))
    StopRequest(World(world_size=2, timeout_minutes=0.5)).close()
    assert made == [{"backend": "gloo", "timeout": timedelta(seconds=30)}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--nproc-per-node 8x", "Unsupported nproc_per_node value: 8x; give numbers"),
        ("--nproc-per-node 0", "give numbers from 1 on"),
        ("--nnodes two", "invalid literal.*give numbers"),
        ("--nnodes 1:2:3", "give numbers"),
        ("--nnodes 2 --node-rank 2", "the 2 machines are numbered from 0 to 1"),
    ],
)
def test_a_number_of_ranks_that_is_none_is_one_line(monkeypatch, words, message):
    monkeypatch.setattr("sys.argv", ["launch", *words.split(), "train.py"])
    with pytest.raises(UserError, match=message) as caught:
        launch.main()
    assert "\n" not in str(caught.value)
