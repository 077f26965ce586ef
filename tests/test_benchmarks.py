"""Every benchmark starts as its documentation types it, from any folder."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from alip.command import pattern
from benchmarks.nodes import count
from tests.helpers.shards import ROOT

SCRIPTS = sorted(
    path for path in (ROOT / "benchmarks").glob("*.py") if "CommandParser" in path.read_text() and path.name[0] != "_"
)
NEEDED = {"gate_page.py": ["--data", "x"]}  # what a command line must have

# Each script in a process of its own, forked from one that has imported the packages of others already, the slow part.
# None of it is ours: a script that finds its own modules only beside a test would fail here, too.
STARTS = """
import json, os, runpy, sys
import matplotlib.figure, numpy, open_clip, PIL.Image, torch, torchvision
for line in sys.stdin:
    script, *needed = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{os.path.basename(script)}.{name}", os.O_WRONLY | os.O_CREAT), number)
        sys.path[0], statuses = os.path.dirname(script), []
        for flags in (["--help"], [*needed, "--no-such-flag"]):
            sys.argv = [script, *flags]
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                statuses.append(end.code)
        print(statuses, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(script): what it wrote to stdout and to stderr, called with --help and then with a wrong flag."""
    folder = tmp_path_factory.mktemp("starts")
    words = [sys.executable, "-W", "ignore", "-c", STARTS]
    server = subprocess.Popen(words, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(script: Path) -> tuple[str, str]:
        print(json.dumps([str(script), *NEEDED.get(script.name, [])]), file=server.stdin, flush=True)
        assert server.stdout.readline() == "ended\n"
        return tuple((folder / f"{script.name}.{name}").read_text() for name in ("out", "err"))

    with server:
        yield start
        server.stdin.close()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_benchmark_starts(script, start):
    """And a wrong flag is one line: in the same process, as the imports take most of the time."""
    out, err = start(script)
    assert out.startswith("usage:") and out.endswith("[0, 2]\n"), out + err
    assert "--no-such-flag" in err.splitlines()[-1] and "usage:" not in err


def test_numbers_are_checked_by_the_parser():
    """A plain int or float takes -5, nan and 10**400, and ends in a traceback; tests/fuzz/tool_flags.py runs them."""
    unchecked = [path.name for path in SCRIPTS if "type=int" in path.read_text() or "type=float" in path.read_text()]
    assert unchecked == []


def test_a_regular_expression_is_checked_by_the_parser():
    assert pattern("a|b").search("b")
    for wrong in ("(", "a{99999999999}", "(" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match="should be a regular expression"):
            pattern(wrong)


QUICK = ["eval", "loss"]


def test_one_command_runs_them_and_writes_a_report(tmp_path):
    words = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(tmp_path), "--only", *QUICK]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "report.md").read_text()
    for words in ("| ranks for retrieval", "a sort of every row", "ClipLoss", "torch 2", "spread", "quick run"):
        assert words in report
    assert (tmp_path / "comparisons.png").stat().st_size > 1000 and (tmp_path / "logs" / "eval.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "engine", "reading", "growth", "breakdown", "evaluation"])
def test_a_tiny_run_of_each(name, tmp_path):
    words = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(tmp_path), "--only", name]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + "".join(path.read_text() for path in (tmp_path / "logs").glob("*"))
    assert name == "reading" or f"- {name}: " in (tmp_path / "report.md").read_text()


def test_ratios_say_how_many_times_better_ours_is():
    import benchmarks.__main__ as main

    rows = [
        main.Row("speed", "ours", "images/s", (10.0, 12.0, 11.0), True),
        main.Row("speed", "peer", "images/s", (5.5,), True),
        main.Row("memory", "ours", "MB", (10.0,), False),
        main.Row("memory", "peer", "MB", (25.0,), False),
    ]
    table = main.comparisons(rows)
    assert table[0] == ["speed", "ours", "11 images/s", "", "18%", "3"]
    assert [row[3] for row in table] == ["", "2.00 ×", "", "2.50 ×"]
    alone = main.Row("growth", "8", "s", (1.0, 2.0), False)
    unmeasured = [main.Row("tiny", "ours", "MB", (0.0,), False), main.Row("tiny", "peer", "MB", (3.0,), False)]
    assert main.by_themselves([*rows, alone]) == [["growth", "8", "1.5 s", "67%", "2"]]
    assert main.comparisons([alone]) == [] and [row[3] for row in main.comparisons(unmeasured)] == ["", ""]


def test_what_cannot_run_here_is_left_out_with_its_reason(tmp_path, monkeypatch):
    import benchmarks.__main__ as main

    monkeypatch.setenv("ALIP_MXNET_PYTHON", "/nowhere/python")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert "requirements-mxnet" in main.run("data2rec", tmp_path, True, 1)
    assert "registry" in main.run("loader", tmp_path, True, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_trains_on_its_part_and_needs_every_shard():
    """What docs/scale.md states about several machines, at a size at which windows are whole batches."""
    for machines in (1, 2, 4):
        found = count("shards", machines, shards=8, per_shard=512, batch_size=16, gpus=2)
        assert found == {"own": 1 / machines, "whole": 1.0}
    assert count("blocks", 2, shards=100, per_shard=1024, batch_size=16, gpus=2)["whole"] > 5


def test_a_benchmark_that_takes_too_long_ends_with_all_that_it_started(tmp_path):
    import benchmarks.__main__ as main

    child = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    words = [sys.executable, "-c", parent, child, str(tmp_path / "pid")]
    assert main.run_group(words, 3) is None
    left = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not left.exists() or left.read_text().rpartition(")")[2].split()[0] == "Z"
    assert main.run_group([sys.executable, "-c", "raise SystemExit(5)"], 60) == 5
