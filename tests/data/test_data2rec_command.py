"""data2rec.py as a user types it: exit status, one line for a mistake, flat memory."""

import json
import subprocess
import sys

import pytest
from data_helpers import ROOT, encoded, make_tars, picture

SCRIPT = str(ROOT / "data2rec.py")


def run(*arguments, cwd=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give --output"),
        (["--output", "x/y"], "give --input"),
        (["--input", "nowhere/{00..02}.tar", "--output", "x/y"], "no such file or folder: nowhere/00.tar"),
        (["--input", ".", "--output", "x/y", "--captions", "none.jsonl"], "no captions file none.jsonl"),
        (["--input", ".", "--output", "x/y", "--part", "0/2"], "--part is K/N"),
        (["--input", ".", "--output", "x/y", "--quality", "0"], "--quality"),
        (["--input", ".", "--output", "x/y"], "no usable sample in the input"),
        (["--verify", "x/none"], "no shards at x/none"),
        (["--merge", "--output", "x/none"], "no parts of x/none"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, arguments, message):
    done = run(*arguments, "--workers", 0, "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_the_whole_way(tmp_path):
    make_tars(tmp_path / "tars", 40, per_tar=20, broken=(4,))
    done = run("--input", "tars/{00000..00001}.tar", "--output", "out/set", "--workers", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "39 samples in 1 shards" in done.stdout and "rejected: 1 truncated" in done.stdout
    assert "images" in done.stderr and "rejects" in done.stderr, "the bar"
    again = run("--input", "tars/{00000..00001}.tar", "--output", "out/set", "--workers", 1, cwd=tmp_path)
    assert again.returncode == 0 and "already complete" in again.stdout
    assert run("--verify", "out/set", "--decode", "--workers", 1, cwd=tmp_path).returncode == 0
    with open(tmp_path / "out" / "set-00000.rec", "rb+") as file:
        file.truncate(9000)
    damaged = run("--verify", "out/set", "--workers", 1, cwd=tmp_path)
    assert damaged.returncode == 1 and "cut short" in damaged.stdout


MEASURE = """
import resource, sys
from alip.data import writer
from alip.data.prepare import Policy
from alip.data.sources import open_source
writer.build(open_source(sys.argv[1]), sys.argv[2], policy=Policy(), workers=0, quiet=True, samples_per_shard=1000,
             captions=sys.argv[1], shuffle_seed=int(sys.argv[3]) if len(sys.argv) > 3 else None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["1"]], ids=["in order", "shuffled"])
def test_memory_is_flat(tmp_path, more):
    """Five times the input, the same peak, within what an allocator's mood explains (in MB)."""
    (tmp_path / "one.jpg").write_bytes(encoded(picture(0, 16, 16)))
    peaks = []
    for count in (1000, 5000):
        path = tmp_path / f"{count}.jsonl"
        with open(path, "w") as file:
            for i in range(count):
                row = {"key": f"k{i}", "image": "one.jpg", "text": f"{'words ' * 20} {i}", "caption": f"said {i}"}
                file.write(json.dumps(row) + "\n")
        command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(path), str(tmp_path / f"out{count}" / "s"), *more]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 7, f"{peaks} MB: 4,000 more samples of over 2 kB"
