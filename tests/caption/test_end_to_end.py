"""Images → captions by real (tiny, random) models → rec shards → one training step, with the commands as typed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alip.caption.pipeline import main
from alip.data.shards import load_manifest, read_texts
from tests.helpers import tiny_captioners as tiny
from tests.helpers.captioning import numbered, read_captions, write_tar

ROOT = Path(__file__).parents[2]
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def must(*words):
    """Runs one of the repository's commands, which must succeed."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, env=os.environ | {"CI": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blip", "coca"])
def test_from_images_to_a_training_step(tmp_path, name):
    images = numbered(0, 24)
    tar = write_tar(tmp_path / "a.tar", images)
    folder = getattr(tiny, f"save_{name}")(tmp_path / name)
    captions = tmp_path / "captions.jsonl"
    given = ["--input", tar, "--output", captions, "--captioner", folder, "--max-new-tokens", 6, "--batch-size", 7]
    assert main([str(word) for word in [*given, "--num-beams", 2, "--min-new-tokens", 3, "--workers", 1]]) == 0
    made = read_captions(captions)
    assert sorted(made) == sorted(images)
    record = json.loads((tmp_path / "captions-run.json").read_text())
    assert record["metadata"]["captioner"]["parameters"] > 10_000
    assert record["settings"]["decoding"]["num_beams"] == 2

    must("data2rec.py", "--input", tar, "--captions", captions, "--output", tmp_path / "shards" / "tiny")
    manifest = load_manifest(str(tmp_path / "shards" / "tiny"))
    assert manifest.samples == len(images)
    rows = read_texts(manifest)
    table = rows.to_pylist() if hasattr(rows, "to_pylist") else list(rows)
    assert {row["key"]: row["caption"] for row in table} == made
    assert {row["key"]: row["text"] for row in table} == {key: f"raw {key}" for key in images}

    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    run = tmp_path / "run"
    settings = [
        "--model",
        tmp_path / "model.json",
        "--batch-size",
        8,
        "--steps",
        1,
        "--log-every",
        1,
        "--device",
        "cpu",
    ]
    must("train.py", "--train-data", tmp_path / "shards" / "tiny", "--output", run, *settings, "--precision", "fp32")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1]
    assert math.isfinite(steps[0]["caption_loss"]) and steps[0]["caption_loss"] > 0
