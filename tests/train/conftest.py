"""A tiny data set, a tiny model, and ways to train on them: in this process, in forked ranks, as a user's command."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image

import train as entry
from alip.data.prepare import Policy
from alip.data.sources import open_source
from alip.data.writer import build
from alip.distributed import World
from alip.train.arguments import parse_arguments

SAMPLES = 52
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
# What a line tells about the machine and not about the run.
CLOCKS = ("time", "pairs_per_s", "data_wait_s", "gpu_memory_gib")
ROOT = Path(entry.__file__).resolve().parent


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """DIR/NAME of shards with SAMPLES triplets in three files; every third raw text is "wrong"."""
    folder = tmp_path_factory.mktemp("train-data")
    draw = random.Random(0)
    lines = []
    for i in range(SAMPLES):
        colour = tuple(draw.randrange(256) for _ in range(3))
        picture = Image.new("RGB", (48, 40), colour)
        picture.putpixel((i % 48, i % 40), (255 - colour[0], 0, 0))
        picture.save(folder / f"{i}.png")
        row = {"key": f"k{i:03d}", "image": f"{i}.png", "text": f"number {i}", "caption": f"a colour of {sum(colour)}"}
        lines.append(json.dumps({**row, "wrong": i % 3 == 0}))
    (folder / "table.jsonl").write_text("\n".join(lines) + "\n")
    build(open_source([str(folder / "table.jsonl")]), folder / "tiny", policy=Policy(), workers=0, samples_per_shard=20)
    return folder / "tiny"


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    """An open_clip JSON of a two-layer ViT."""
    path = tmp_path_factory.mktemp("train-model") / "tiny.json"
    path.write_text(json.dumps(MODEL))
    return path


@pytest.fixture
def flags(data, model_file):
    """The flags that all runs here share; each test adds its own, and --output."""
    return [
        *("--train-data", str(data), "--model", str(model_file), "--device", "cpu", "--precision", "fp32"),
        *("--reader", "torch", "--threads", "1", "--batch-size", "8", "--epochs", "2", "--log-every", "1"),
    ]


def train_here(*argv: str | Path, world: World | None = None) -> int:
    """One run in this process; returns its exit status."""
    return entry.train(parse_arguments([str(word) for word in argv]), world or World())


def command(*argv: str | Path) -> list[str]:
    """The run as a user's command."""
    return [sys.executable, str(ROOT / "train.py"), *(str(word) for word in argv)]


def start(words: list[str], **settings) -> subprocess.Popen:
    """A command started, with its output kept."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train_lines(run: Path) -> list[dict]:
    """The train lines of a run without its clocks: two runs that did the same have the same ones."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines if line["kind"] == "train"]


def events(run: Path, name: str) -> list[dict]:
    """The event lines of that name."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == name]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The newest checkpoint's weights."""
    newest = max((run / "checkpoints").glob("step-*.pt"))
    return torch.load(newest, weights_only=True)["model"]


def on_ranks(count: int, function, *arguments) -> list:
    """Runs function(world, *arguments) on `count` forked gloo ranks; returns their results in rank order."""
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers = [
        context.Process(target=_rank, args=(r, count, store.port, queue, function, arguments)) for r in range(count)
    ]
    for worker in workers:
        worker.start()
    results = dict(queue.get() for _ in workers)
    for worker in workers:
        worker.join()
    failed = [f"rank {r}: {result[1]}" for r, result in results.items() if result[0] == "error"]
    assert not failed, failed
    return [results[r][1] for r in range(count)]


def _rank(rank, count, port, queue, function, arguments) -> None:
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
        result = ("ok", function(World(rank, rank, count), *arguments))
    except BaseException as error:
        result = ("error", repr(error))
    queue.put((rank, result))
    os._exit(0)  # a forked child must not run pytest's own ending
