"""End to end as a user types it, on a few of the demo's images: tars → shards → training → numbers → plots."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SAMPLES = 48
TINY_MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}

pytestmark = pytest.mark.slow


def command(*words, cwd=ROOT, **environment):
    """Runs one command as typed; returns the finished process with its text."""
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
    )


def must(*words, **keywords):
    """As `command`, and the command must succeed."""
    done = command(*words, **keywords)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


def must_refuse(*words, naming):
    """As `command`, and it must end with status 2 and one line that names the culprit."""
    done = command(*words)
    assert done.returncode == 2, f"{words}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and naming in lines[0], done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder with a small tar, its shards, a trained run and test sets, all made by the commands."""
    folder = tmp_path_factory.mktemp("whole-way")
    pairs, classes = [], []
    (folder / "eval/images").mkdir(parents=True)
    with (
        tarfile.open(ROOT / "scripts/demo/train-00000.tar") as demo,
        tarfile.open(folder / "few.tar", "w") as few,
    ):
        members = demo.getmembers()[: 2 * SAMPLES]
        for member, text in zip(members[::2], members[1::2], strict=True):
            for each in (member, text):
                few.addfile(each, demo.extractfile(each))
            record = json.loads(demo.extractfile(text).read())
            image = f"images/{member.name}"
            (folder / "eval" / image).write_bytes(demo.extractfile(member).read())
            pairs.append({"image": image, "caption": [record["name"]]})
            classes.append({"image": image, "label": record["class"]})
    names = sorted({row["label"] for row in classes})
    for name, rows in (("captions", pairs), ("classes", classes)):
        (folder / f"eval/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "eval/classnames.json").write_text(json.dumps({"eval": names}))
    (folder / "eval/templates.json").write_text(json.dumps({"eval": ["a {}."]}))
    (folder / "model.json").write_text(json.dumps(TINY_MODEL))

    must("python", "data2rec.py", "--input", folder / "few.tar", "--output", folder / "shards/few", "--quiet")
    must(*train(folder, "run"), "--mismatch-column", "is_mismatched")
    return folder


def train(folder, run, *, processes=1):
    """The words of a short training run."""
    return [
        *("torchrun", "--standalone", "--nproc_per_node", processes, "train.py"),
        *("--train-data", folder / "shards/few", "--model", folder / "model.json", "--output", folder / run),
        *("--epochs", 3, "--batch-size", 16 // processes, "--log-every", 1, "--precision", "fp32"),
        *("--workers", 1, "--seed", 7, "--history-init", "first-batch", "--device", "cpu"),
    ]


def metrics(folder, run, kind):
    lines = (folder / run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_training_leaves_the_promised_traces(house):
    steps = metrics(house, "run", "train")
    assert [row["step"] for row in steps] == list(range(1, 10))  # 48 samples / 16 × 3 epochs
    assert len(metrics(house, "run", "gates")) == 3
    assert list((house / "run/tensorboard").glob("events.*"))
    assert list((house / "run/checkpoints").glob("step-*.pt"))
    run = json.loads((house / "run/run.json").read_text())
    assert run["arguments"]["batch_size"] == 16


def test_a_finished_run_is_left_alone(house):
    before = metrics(house, "run", "train")
    must(*train(house, "run"), "--mismatch-column", "is_mismatched", "--resume", "auto")
    assert metrics(house, "run", "train") == before


def test_two_processes_train_as_one(house):
    must(*train(house, "two", processes=2))
    for one, two in zip(metrics(house, "run", "train"), metrics(house, "two", "train"), strict=True):
        # The same global batches in the same order: equal up to the order of sums.
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-3)


def test_evaluations_and_plots(house):
    results = house / "results"
    data = house / "eval"
    done = must(
        *("python", "eval_retrieval.py", "--checkpoint", house / "run", "--dataset", data / "captions.jsonl"),
        *("--output", results, "--device", "cpu"),
    )
    assert "R@1" in done.stdout
    must(
        *("python", "eval_zeroshot.py", "--checkpoint", house / "run", "--datasets", data / "classes.jsonl"),
        *("--classnames", data / "classnames.json", "--prompts", data / "templates.json"),
        *("--output", results, "--device", "cpu"),
    )
    scores = results / "gates.parquet"
    shards = house / "shards/few"
    done = must(
        *("python", "-m", "alip.eval.gates", "--checkpoint", house / "run", "--data", shards),
        *("--mismatch-column", "is_mismatched", "--output", results, "--device", "cpu"),
    )
    assert (results / "gates.html").stat().st_size > 1e6
    assert f"{SAMPLES} samples scored with the checkpoint" in done.stdout and "AUC" in done.stdout
    must(
        *("python", "-m", "alip.eval.plots", "--run", house / "run", "--scores", scores, "--data", shards),
        *("--mismatch-column", "is_mismatched", "--output", house / "plots"),
    )
    for name in ("curves.png", "gates.png"):
        with Image.open(house / "plots" / name) as plot:
            assert min(plot.size) > 300


def test_mistakes_get_one_line_and_status_two(house, tmp_path):
    base = ("python", "train.py", "--output", tmp_path / "run", "--device", "cpu", "--batch-size", 16, "--epochs", 1)
    model = ("--model", house / "model.json")
    data = ("--train-data", house / "shards/few")
    must_refuse(*base, *model, "--train-data", tmp_path / "none", naming="none")
    must_refuse(*base, *data, "--model", "ViT-B-23", naming="ViT-B-23")
    (tmp_path / "empty").mkdir()
    must_refuse("python", "data2rec.py", "--input", tmp_path / "empty", "--output", tmp_path / "x/x", naming="empty")

    for file in (house / "shards").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rec = tmp_path / "few-00000.rec"
    rec.write_bytes(rec.read_bytes()[:-1000])
    must_refuse(*base, *model, "--train-data", tmp_path / "few", naming="few-00000.rec")

    evaluate = ("python", "eval_retrieval.py", "--checkpoint", house / "run", "--device", "cpu")
    must_refuse(*evaluate, "--dataset", "flickr31k", naming="flickr31k")
    zeroshot = ("python", "eval_zeroshot.py", "--device", "cpu", "--checkpoint")
    must_refuse(*zeroshot, house / "run", "--datasets", "imagenot", naming="imagenot")
    must_refuse(*zeroshot, tmp_path / "no-run", "--datasets", house / "eval/classes.jsonl", naming="no-run")
    other = {**TINY_MODEL, "embed_dim": 64}
    (tmp_path / "other.json").write_text(json.dumps(other))
    must_refuse(
        *evaluate, "--model", tmp_path / "other.json", "--dataset", house / "eval/captions.jsonl", naming="step-"
    )
