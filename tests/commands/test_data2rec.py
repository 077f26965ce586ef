"""data2rec.py as a user types it: exit status, one line for a mistake, flat memory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.score_tables import write_made_up_table
from tests.helpers.shards import ROOT, build_shards, encoded, make_image, make_tars

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
        (["--input", ".", "--output", "x/y", "--part", "0/2"], "--shard is K/N"),
        (["--input", ".", "--output", "x/y", "--quality", "0"], "--quality"),
        (["--input", ".", "--output", "x/y", "--shuffle", "-1"], "--shuffle: should be from 0"),
        (["--input", ".", "--output", "x/y", "--short-side", "-5"], "--short-side: should be from 0"),
        (["--input", ".", "--output", "x/y", "--max-pixels", "0"], "--max-pixels: should be from 1"),
        (
            ["--input", ".", "--output", "x/y", "--captions-per-image", "0"],
            "--captions-per-image: should be from 1 to 1000",
        ),
        (["--input", ".", "--output", "x/y", "--caption-sentences", "only"], "give --captions-per-image K, such as 8"),
        (["--output", "x/y", "--show", "0"], "--show: should be from 1 to 10000"),
        (["--input", ".", "--output", "x/y"], "no usable sample in the input"),
        (["--verify", "x/none"], "no shards at x/none"),
        (["--verify", "x/none", "--quality", "50"], "--quality means nothing with --verify"),
        (["--input", ".", "--output", "x/y", "--show", "3"], "--input and --show are different tasks"),
        (["--input", ".", "--output", "x/y", "--decode"], "--decode belongs to --verify"),
        (["--from", "x/none", "--output", "x/y", "--short-side", "9"], "--short-side means nothing with --from"),
        (["--verify", "x/none", "--engine", "ray"], "--engine ray builds from --input"),
        (["--merge", "--output", "x/none"], "no input shards of x/none"),
        (["--from", "x/none", "--output", "x/y"], "--from needs --scores FILE"),
        (["--from", "x/none", "--scores", "s", "--keep", "true", "--output", "x/y"], "no shards at x/none"),
        (["--input", ".", "--keep", "true", "--output", "x/y"], "--keep belongs to --from"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, arguments, message):
    done = run(*arguments, "--workers", 0, "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_end_to_end(tmp_path):
    make_tars(tmp_path / "tars", 40, per_tar=20, broken=(4,))
    done = run("--input", "tars/{00000..00001}.tar", "--output", "out/set", "--workers", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "39 samples in 1 shard" in done.stdout and "rejected: 1 truncated" in done.stdout
    assert "images" in done.stderr and "rejects" in done.stderr, "the bar"
    again = run("--input", "tars/{00000..00001}.tar", "--output", "out/set", "--workers", 1, cwd=tmp_path)
    assert again.returncode == 0 and "already complete" in again.stdout
    assert run("--verify", "out/set", "--decode", "--workers", 1, cwd=tmp_path).returncode == 0
    with open(tmp_path / "out" / "set-00000.rec", "rb+") as file:
        file.truncate(9000)
    damaged = run("--verify", "out/set", "--workers", 1, cwd=tmp_path)
    assert damaged.returncode == 1 and "cut short" in damaged.stdout


def test_selection(tmp_path):
    make_tars(tmp_path / "tars", 40)
    build_shards(tmp_path / "tars", tmp_path / "set")
    scores = write_made_up_table(tmp_path / "set", tmp_path / "gates.parquet")
    words = ("--from", tmp_path / "set", "--scores", scores, "--output", tmp_path / "clean")
    done = run(*words, "--keep", "sample_weight > quantile(sample_weight, 0.25)", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "30 of 40 samples kept (75.0 %) in 1 shard" in done.stdout
    refused = run(*words, "--keep", "sample_weigth > 0.2", "--overwrite")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "no column 'sample_weigth'; the table has index, key, shard" in refused.stderr
    assert run("--verify", tmp_path / "clean", "--workers", 1).returncode == 0


MEASURE = """
import sys, tracemalloc
from alip import tokens
from alip.build import prepare, shuffle, writer
from alip.build.joined_texts import TextFiles
from alip.build.open_source import open_source
from alip.tokens import tokenize
tokenize(["loaded before anything is measured"])
prepare.WORDS = tokens._KEPT_WORDS = 400
shuffle.FILES = 8  # each has a buffer of its own; so all are in use in every turn
for turn, path in enumerate(sys.argv[2:]):
    tracemalloc.start()
    writer.build(open_source(path), f"{path}-out/set", policy=prepare.Policy(), workers=0, quiet=True,
                 texts=TextFiles(captions=(path,)), samples_per_shard=125, shuffle_seed=int(sys.argv[1]) or None)
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


@pytest.mark.parametrize("shuffle_seed", ["0", "1"], ids=["in order", "shuffled"])
def test_memory_is_flat(tmp_path, shuffle_seed):
    """Four times the input, with new words in every line, and the same peak of all that Python holds."""
    (tmp_path / "one.jpg").write_bytes(encoded(make_image(0, 16, 16)))
    rng = np.random.default_rng(0)
    paths = []
    for turn, count in enumerate((250, 250, 1000)):  # the first loads what is loaded once
        paths.append(tmp_path / f"{turn}.jsonl")
        with open(paths[-1], "w") as file:
            for i in range(count):
                text = " ".join("".join(rng.choice(list("abcdefgh"), 9)) for _ in range(4))
                row = {"key": f"k{i}", "image": "one.jpg", "text": text, "caption": f"said {i}"}
                file.write(json.dumps(row) + "\n")
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, shuffle_seed, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    _, small, large = map(int, done.stdout.split())
    assert large < small + 300_000, f"{small} and {large} bytes: 750 more samples are 1.6 MB"
