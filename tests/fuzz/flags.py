"""Hostile values for every flag of every command, with all else valid: read, or one line and status 2.

The flags are the parsers' own, so a new flag is a target without a line here. Paths are inside the case's folder.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import importlib.util
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from alip.command import CommandParser, pattern
from alip.errors import run_command
from tests.fuzz import OK, Target
from tests.helpers.captioning import write_captioner
from tests.helpers.shards import ROOT, encoded, make_image
from tests.helpers.steps import TINY_MODEL

LONGEST_LINE = 1100  # characters: two long paths and a sentence
NUMBERS = (
    *("0", "-1", "1", "2", "-0.5", "0.5", "nan", "NaN", "inf", "-inf", "1e309", "1e-400", "1e30", "-1e30", "3.0"),
    *("100000", "2147483648", "9223372036854775808", "-9223372036854775809", "1" * 30, "9" * 5000, "0x10", "1_000"),
    *("١٢", "１２", "½", "²", "+3", " 4 ", "1,5", "1e2", "True", "None"),
)
WORDS = (
    *("", " ", "\n", "a\nb", "\t", "\udcff", "🙂", "日本", "\u202e", "%", "%s", "%(default)s", "$HOME", "$(x)", "`x`"),
    *("{}", "{0}", "{1..99999999}", "{a,b", "*", "[", "[!", "~", "~nobody", "-", "--", "-x", "--help-me", "=", "a=b"),
    *("x" * 250, "x" * 5000, "auto", "none", "null", "cpu", "cuda:0", "cuda:-1", "cpu:99", "meta", "hf-hub:", "a:b"),
    *("ViT-B-32:", ":openai", "1/0", "0/0", "3/2", "1/1", "-1/2", "1/", "a,b", ",", "100steps", "-1epochs", "0", "é"),
)
PATHS = (
    *("folder", "file", "empty", "fifo", "socket", "loop", "dangling", "missing", "missing/deeper/x", "file/x", "."),
    *("/dev/null", "/dev/full", "/proc/self/mem", "/proc/nothing", "folder/", "./file", "a\nb", "\udcff/x", "z" * 255),
    *("z" * 256, "d/" * 3000 + "x", "file\x00", "%s", "{}", "$x", "utf16.json", "deep.json", "nul.json", "list.json"),
)


@dataclass(frozen=True)
class Command:
    """A command: what runs it, and a valid command line of [flag, values …] parts in which only {out} is written to.

    stops: ALWAYS or NUMBERS, where a case ends behind the command's parser: always, or when a number is not the valid
    one, where the work would take long.
    """

    name: str
    entry: str  # a module, or a script of the repository
    function: str
    parts: tuple[tuple[str, ...], ...]
    stops: str = ""


ALWAYS, NUMBERS = "always", "numbers"


class Captured(Exception):
    """Carries a command's parser."""


@lru_cache(maxsize=1)
def fixtures() -> dict[str, str]:
    """Everything that a valid command line names, made once; removed when the process ends."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-flags-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    images = root / "source"
    rows, captions = [], []
    for number in range(12):
        (images / ("ab"[number % 2])).mkdir(parents=True, exist_ok=True)
        name = f"{'ab'[number % 2]}/{number}.jpg"
        (images / name).write_bytes(encoded(make_image(number)))
        rows.append(
            {"key": f"k{number}", "image": name, "text": f"number {number}", "caption": f"a {number}"}
            | {"is_mismatched": number % 3 == 0}
        )
        captions.append({"image": name, "caption": [f"number {number}", f"the {number}"]})
    (images / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (images / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    for row in rows:
        (images / "classes" / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        (images / "classes" / row["image"]).write_bytes((images / row["image"]).read_bytes())
    classes = [{"image": row["image"], "label": row["image"][0]} for row in rows]
    (images / "classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in classes))
    found = {"source": images / "table.jsonl", "retrieval": images / "captions.jsonl", "folder": images}
    found |= {"classes": images / "classes.jsonl", "data": root / "shards" / "set", "model": root / "tiny.json"}
    (root / "tiny.json").write_text(json.dumps(TINY_MODEL))
    found |= {"captioner": f"file:{write_captioner(root)}", "run": root / "run", "scores": root / "gates"}
    words = {name: str(value) for name, value in found.items()}
    words["captions"] = words["source"]
    for name in ("data2rec", "train", "gates", "retrieval"):
        out = {"data2rec": words["data"], "train": words["run"], "gates": words["scores"]}.get(name, words["run"])
        run(name, words, out)
    words["table"] = str(root / "gates" / "gates.parquet")
    words["merge"] = str(root / "merge" / "set")
    for number in (1, 2):
        run("data2rec", words, words["merge"], "--shard", f"{number}/2")
    words["captioned"] = str(root / "captioned" / "c")
    run("caption", words, words["captioned"])
    words |= {"names": str(root / "names.json"), "prompts": str(root / "prompts.json"), "root": str(root)}
    (root / "names.json").write_text(json.dumps({"source/classes": ["an a", "a b"]}))
    (root / "prompts.json").write_text(json.dumps({"source/classes": ["a photo of {}.", "{}"]}))
    return words


def run(name: str, words: dict[str, str], out: str, *more: str) -> None:
    """Runs a valid command line of a command, which must succeed."""
    command = next(command for command in COMMANDS if command.name == name)
    argv = [word.format(**words, out=out) for part in command.parts for word in part]
    status, stderr = run_command_line(command, [*argv, *more])
    if status not in (0, None):
        raise RuntimeError(f"the valid {name} ended with status {status}: {stderr}")


COMMANDS = (
    Command(
        "data2rec",
        "data2rec.py",
        "main",
        (
            *(("--input", "{source}"), ("--output", "{out}"), ("--workers", "0"), ("--quiet",)),
            ("--samples-per-shard", "5"),
        ),
    ),
    Command(
        "train",
        "train.py",
        "main",
        (
            *(("--train-data", "{data}"), ("--model", "{model}"), ("--output", "{out}"), ("--steps", "2")),
            *(("--batch-size", "4"), ("--reader", "torch"), ("--workers", "1"), ("--device", "cpu")),
            *(("--report-to", "none"), ("--precision", "fp32"), ("--cpu-threads", "1"), ("--save-every", "1")),
        ),
    ),
    Command(
        "retrieval",
        "eval_retrieval.py",
        "main",
        (
            *(("--checkpoint", "{run}"), ("--dataset", "{retrieval}"), ("--output", "{out}"), ("--workers", "0")),
            *(("--device", "cpu"), ("--no-plots",), ("--precision", "fp32"), ("--data-root", "{folder}")),
        ),
    ),
    Command(
        "zeroshot",
        "eval_zeroshot.py",
        "main",
        (
            *(("--checkpoint", "{run}"), ("--datasets", "{classes}"), ("--output", "{out}"), ("--workers", "0")),
            *(("--device", "cpu"), ("--no-plots",), ("--precision", "fp32"), ("--data-root", "{folder}")),
        ),
    ),
    Command(
        "gates",
        "alip.eval.gates.__main__",
        "main",
        (
            *(("--checkpoint", "{run}"), ("--data", "{data}"), ("--output", "{out}"), ("--workers", "1")),
            *(("--device", "cpu"), ("--quiet",), ("--mismatch-column", "is_mismatched")),
        ),
    ),
    Command(
        "caption",
        "alip.caption.pipeline",
        "main",
        (
            *(("--input", "{source}"), ("--output", "{out}.jsonl"), ("--captioner", "{captioner}")),
            *(("--workers", "0"), ("--device", "cpu")),
        ),
    ),
    Command(
        "score",
        "alip.caption.score",
        "main",
        (
            *(("--input", "{source}"), ("--output", "{out}.parquet"), ("--captions", "{captioned}.jsonl")),
            *(("--checkpoint", "{run}"), ("--workers", "0"), ("--device", "cpu"), ("--key-field", "key")),
        ),
    ),
    Command("verify", "data2rec.py", "main", (("--verify", "{data}"), ("--workers", "1"))),
    Command(
        "select",
        "data2rec.py",
        "main",
        (
            *(("--from", "{data}"), ("--output", "{out}"), ("--scores", "{table}"), ("--quiet",)),
            ("--keep", "image_text_similarity > -2"),
        ),
    ),
    Command(
        "check",
        "train.py",
        "main",
        (
            *(("--train-data", "{data}"), ("--model", "{model}"), ("--output", "{out}"), ("--epochs", "2")),
            *(("--batch-size", "4"), ("--reader", "torch"), ("--workers", "1"), ("--device", "cpu"), ("--check",)),
            *(("--eval-retrieval", "{retrieval}"), ("--mismatch-column", "is_mismatched"), ("--cpu-threads", "1")),
        ),
    ),
    Command(
        "launch",
        "alip.train.launch",
        "main",
        (
            *(("--check-only",), ("--standalone",), ("--nproc-per-node", "2"), ("train.py",)),
            *(("--train-data", "{data}"), ("--model", "{model}"), ("--output", "{out}"), ("--batch-size", "4")),
        ),
    ),
    Command("plots", "alip.eval.plots.__main__", "main", (("--run", "{run}"), ("--output", "{out}"))),
    Command("report", "alip.eval.report", "main", (("{run}",), ("--output", "{out}"))),
    Command(
        "export",
        "alip.checkpoint.__main__",
        "main",
        (("export",), ("--checkpoint", "{run}"), ("--to", "open_clip"), ("--output", "{out}")),
    ),
    Command(
        "import", "alip.checkpoint.__main__", "main", (("import",), ("--checkpoint", "{run}"), ("--output", "{out}"))
    ),
)


@cache
def _main(entry: str, function: str) -> Callable[[], int | None]:
    if not entry.endswith(".py"):
        return getattr(importlib.import_module(entry), function)
    spec = importlib.util.spec_from_file_location("fuzzed_" + entry.removesuffix(".py").replace("/", "_"), ROOT / entry)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str((ROOT / entry).parent), *sys.path])  # as of a script
        spec.loader.exec_module(module)
    return getattr(module, function)


def _parse_and_end(self: CommandParser, *given: object) -> None:
    argparse.ArgumentParser.parse_args(self, *given)
    raise SystemExit(0)


def run_command_line(command: Command, argv: list[str], stop: bool = False) -> tuple[object, str]:
    """The command's exit status and what it printed on stderr; an escaped exception is raised. stop: ends with 0 when
    the command's parser has taken the command line."""
    main = _main(command.entry, command.function)
    stderr = io.StringIO()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(stderr):
        patch.setattr(sys, "argv", [command.entry, *argv])
        if (ROOT / command.entry).is_file():
            patch.setattr(sys, "path", [str((ROOT / command.entry).parent), *sys.path])
        if stop:
            patch.setattr(CommandParser, "parse_args", _parse_and_end)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # a hostile name is nothing to ask for
        try:
            run_command(main)
        except SystemExit as end:
            return end.code, stderr.getvalue()
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
    return None, stderr.getvalue()


@cache
def _actions(command: Command) -> tuple[argparse.Action, ...]:
    """The flags that the command's parser has, by parsing once."""

    def capture(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Captured(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", capture)
        patch.setattr(sys, "argv", [command.entry, "--check-only"])
        try:
            _main(command.entry, command.function)()
        except Captured as found:
            parser = found.args[0]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parser = action.choices[command.parts[0][0]]
    left_out = argparse._HelpAction | argparse._VersionAction
    return tuple(one for one in parser._actions if not isinstance(one, left_out) and one.help != argparse.SUPPRESS)


def _hostile_files(folder: Path) -> None:
    """What PATHS names."""
    (folder / "folder").mkdir()
    (folder / "file").write_bytes(b"\x00\xff{}" * 10)
    (folder / "empty").touch()
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "utf16.json").write_bytes('{"a": 1}'.encode("utf-16"))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "nul.json").write_bytes(b"\x00" * 100)
    (folder / "list.json").write_text("[1, 2]")


def _value(rng: random.Random, action: argparse.Action) -> str:
    if action.choices and rng.random() < 0.5:
        return str(rng.choice(list(action.choices)))
    numeric = action.type not in (None, Path) or isinstance(action.default, int | float)
    return rng.choice(rng.choice((NUMBERS, NUMBERS, WORDS, PATHS) if numeric else (WORDS, PATHS, PATHS, NUMBERS)))


def _hostile(rng: random.Random, action: argparse.Action) -> list[str]:
    """The flag with hostile values, now and then with too many or too few of them."""
    flag = [rng.choice(action.option_strings)] if action.option_strings else []
    most = 0 if action.nargs == 0 else action.nargs if isinstance(action.nargs, int) else 1
    if isinstance(action.nargs, str) and action.nargs in "*+":
        most = rng.choice((1, 1, 2, 4))
    if rng.random() < 0.05:
        most = rng.choice((0, 1, 2, 3))
    values = [_value(rng, action) for _ in range(most)]
    if len(values) == 1 and flag and flag[0].startswith("--") and rng.random() < 0.5:
        return [f"{flag[0]}={values[0]}"]  # so that a value may begin with a dash
    return [*flag, *values]


def check_end(what: str, status: object, stderr: str) -> None:
    """AssertionError unless a command has ended as it may: a mistake is one line, whatever the status says."""
    lines = stderr.strip().splitlines()
    assert status in (0, 1, 2), f"{what}: status {status}: {stderr[:300]}"
    assert status != 2 or (len(lines) == 1 and len(lines[0]) <= LONGEST_LINE), f"{what}: status 2: {stderr[:600]!r}"


def make(command: Command) -> Callable[[random.Random, Path], Callable[[], object]]:
    """Cases of one command: one to three of its flags with hostile values."""

    def made(rng: random.Random, folder: Path) -> Callable[[], object]:
        words = {**fixtures(), "out": str(folder / "out" / "set")}
        parts = [[word.format(**words) for word in part] for part in command.parts]
        actions = _actions(command)
        chosen = rng.sample(actions, min(len(actions), rng.choice((1, 1, 1, 2, 3))))
        numbers = any(action.type not in (None, Path, pattern) for action in chosen)
        stop = command.stops == ALWAYS or (command.stops == NUMBERS and numbers)
        for action in chosen:
            parts = [part for part in parts if not part or part[0] not in action.option_strings]
            parts.append(_hostile(rng, action))
        argv = [word.replace("\x00", "\\0") for part in parts for word in part]  # no command line can hold a NUL
        _hostile_files(folder)

        def run() -> None:
            here = os.getcwd()
            os.chdir(folder)
            try:
                status, stderr = run_command_line(command, argv, stop)
            finally:
                os.chdir(here)
                shutil.rmtree(folder / "out", ignore_errors=True)
            check_end(f"{command.name} {' '.join(map(ascii, parts[-1]))[:300]}", status, stderr)

        return run

    return made


TARGETS = [Target(f"flags: {command.name}", make(command), frozenset({OK})) for command in COMMANDS]
