"""A tiny dataset, a tiny model, and the flags that runs on them share."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from alip.build.open_source import open_source
from alip.build.prepare import Policy
from alip.build.writer import build
from tests.helpers.steps import TINY_MODEL
from tests.helpers.train_runs import SAMPLES


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """DIR/NAME of shards with SAMPLES samples in three files; every third raw text is labelled mismatched."""
    folder = tmp_path_factory.mktemp("train-data")
    generator = random.Random(0)
    lines = []
    for i in range(SAMPLES):
        colour = tuple(generator.randrange(256) for _ in range(3))
        image = Image.new("RGB", (48, 40), colour)
        image.putpixel((i % 48, i % 40), (255 - colour[0], 0, 0))
        image.save(folder / f"{i}.png")
        row = {"key": f"k{i:03d}", "image": f"{i}.png", "text": f"number {i}", "caption": f"a colour of {sum(colour)}"}
        lines.append(json.dumps({**row, "is_mismatched": i % 3 == 0}))
    (folder / "table.jsonl").write_text("\n".join(lines) + "\n")
    build(open_source([str(folder / "table.jsonl")]), folder / "tiny", policy=Policy(), workers=0, samples_per_shard=20)
    return folder / "tiny"


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    """An open_clip JSON of a two-layer ViT."""
    path = tmp_path_factory.mktemp("train-model") / "tiny.json"
    path.write_text(json.dumps(TINY_MODEL))
    return path


@pytest.fixture
def flags(data, model_file):
    """The flags that all runs here share; each test adds its own, and --output."""
    return [
        *("--train-data", str(data), "--model", str(model_file), "--device", "cpu", "--precision", "fp32"),
        *("--reader", "torch", "--workers", "1", "--batch-size", "8", "--epochs", "2", "--log-every", "1"),
    ]
