"""Ways to train in a test: in this process, as a user's command; and what a run left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from alip.distributed import World
from alip.train.arguments import parse_arguments

SAMPLES = 52
# What a line holds about the machine and not about the run.
CLOCKS = ("time", "samples_per_s", "model_tflops_per_s", "mfu", "data_wait_s", "gpu_memory_gib")
ROOT = Path(__file__).resolve().parents[2]

# By its path: the folder of these tests is called train, too.
_spec = importlib.util.spec_from_file_location("train_entry", ROOT / "train.py")
entry = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(entry)


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


def train_on_rank(world, options):
    return train_here(*options, world=world)
