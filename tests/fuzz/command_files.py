"""Every command on a valid command line, with one of the files that it reads mutated, or something else in its place.

The other targets call what reads a file; here the whole command runs, as a user would start it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import OK, Target
from tests.fuzz.flags import COMMANDS, Command, check_end, fixtures, run_command_line
from tests.fuzz.mutations import damage, json_bytes, replace_file

SHARDS = ("shards/*",)
RUN = ("run/checkpoints/*.pt", "run/run.json", "run/model.json")
_TRAINING = (
    *(("--train-data", "{data}"), ("--model", "{model}"), ("--steps", "3"), ("--batch-size", "4")),
    *(("--reader", "torch"), ("--workers", "1"), ("--device", "cpu"), ("--report-to", "none"), ("--cpu-threads", "1")),
    ("--precision", "fp32"),
)
_EVALUATION = (("--checkpoint", "{run}"), ("--output", "{out}"), ("--workers", "0"), ("--device", "cpu"))
MORE = (
    Command("resume", "train.py", "main", (*_TRAINING, ("--output", "{run}"), ("--resume", "auto"))),
    Command("resume from", "train.py", "main", (*_TRAINING, ("--output", "{out}"), ("--resume", "{run}"))),
    Command("pretrained", "train.py", "main", (*_TRAINING, ("--output", "{out}"), ("--pretrained", "{run}"))),
    Command("merge", "data2rec.py", "main", (("--merge",), ("--output", "{merge}"))),
    Command(
        "captions",
        "data2rec.py",
        "main",
        (
            *(("--input", "{source}"), ("--captions", "{captions}"), ("--output", "{out}")),
            *(("--workers", "0"), ("--quiet",)),
        ),
    ),
    Command("show", "data2rec.py", "main", (("--show", "3"), ("--output", "{data}"))),
    Command(
        "caption again",
        "alip.caption.pipeline",
        "main",
        (
            *(("--input", "{source}"), ("--output", "{captioned}.jsonl"), ("--captioner", "{captioner}")),
            *(("--workers", "0"), ("--device", "cpu")),
        ),
    ),
    Command(
        "existing captions",
        "alip.caption.pipeline",
        "main",
        (
            *(("--input", "{source}"), ("--output", "{out}.jsonl"), ("--captioner", "existing:{captions}")),
            *(("--workers", "0"), ("--device", "cpu"), ("--key-field", "key")),
        ),
    ),
    Command(
        "prompts",
        "eval_zeroshot.py",
        "main",
        (
            *(*_EVALUATION, ("--datasets", "{classes}"), ("--prompts", "{prompts}"), ("--classnames", "{names}")),
            *(("--no-plots",), ("--task", "both")),
        ),
    ),
    Command("classes in folders", "eval_zeroshot.py", "main", (*_EVALUATION, ("--datasets", "{folder}/classes"))),
    Command(
        "gate plots",
        "alip.eval.plots.__main__",
        "main",
        (
            *(("--run", "{run}"), ("--output", "{out}"), ("--scores", "{table}"), ("--data", "{data}")),
            ("--mismatch-column", "is_mismatched"),
        ),
    ),
)
# What each of the commands reads.
FILES = {
    **dict.fromkeys(("data2rec", "caption"), ("source/table.jsonl", "source/table.jsonl", "source/a/*.jpg")),
    **dict.fromkeys(("captions", "existing captions"), ("source/table.jsonl",)),
    **dict.fromkeys(("verify", "show"), SHARDS),
    **dict.fromkeys(("train", "check", "launch"), (*SHARDS, "tiny.json")),
    **dict.fromkeys(("resume", "resume from"), (*RUN, "run/metrics.jsonl")),
    **dict.fromkeys(("pretrained", "export", "import"), RUN),
    "merge": ("merge/*.json", "merge/*.jsonl", "merge/*"),
    "select": (*SHARDS, "gates/gates.parquet"),
    "retrieval": (*RUN, "source/captions.jsonl", "source/a/*.jpg"),
    "zeroshot": (*RUN, "source/classes.jsonl", "source/a/*.jpg"),
    "prompts": ("names.json", "prompts.json", "run/results/results.json", "source/classes.jsonl"),
    "classes in folders": ("source/classes/*/*.jpg",),
    "gates": (*RUN, *SHARDS),
    "gate plots": ("gates/gates.parquet", "run/metrics.jsonl", *SHARDS),
    "plots": ("run/metrics.jsonl",),
    "report": ("run/results.json", "run/results/results.json"),
    "caption again": ("captioned/*",),
}


def mutate(rng: random.Random, path: Path) -> str:
    """One mutated file; what was done."""
    if rng.random() < 0.15:
        return replace_file(rng, path)
    data = path.read_bytes()
    path.unlink()  # a hard link to what the other cases read
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.85:
        lines = path.suffix == ".jsonl"
        rows = [json.loads(line) for line in data.decode().splitlines()] if lines else json.loads(data)
        path.write_bytes(json_bytes(rng, rows, lines))
        return "JSON"
    path.write_bytes(damage(rng, data))
    return "bytes"


def _copy(source: str, target: str) -> None:
    """A link where nothing writes into the file: only checkpoints are large."""
    (os.link if source.endswith(".pt") else shutil.copyfile)(source, target)


def make(command: Command) -> Callable[[random.Random, Path], Callable[[], object]]:
    """Cases of one command."""

    def made(rng: random.Random, folder: Path) -> Callable[[], object]:
        words = fixtures()
        inputs = folder / "in"
        shutil.copytree(words["root"], inputs, copy_function=_copy)
        found = sorted(path for path in inputs.glob(rng.choice(FILES[command.name])) if path.is_file())
        what = "nothing"
        if found:
            path = rng.choice(found)
            what = f"{path.relative_to(inputs)} ({mutate(rng, path)})"
        here = {name: word.replace(words["root"], str(inputs)) for name, word in words.items()}
        argv = [word.format(**here, out=str(folder / "out" / "set")) for part in command.parts for word in part]

        def run() -> None:
            shutil.rmtree(folder / "out", ignore_errors=True)
            check_end(f"{command.name} with {what}", *run_command_line(command, argv))

        return run

    return made


TARGETS = [
    Target(f"files: {command.name}", make(command), frozenset({OK}))
    for command in (*COMMANDS, *MORE)
    if command.name in FILES
]
