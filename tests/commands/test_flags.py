"""Hostile values for the flags of every command: a seeded few of what tests/soak_fuzz.py runs by the thousand."""

import importlib
import random
import sys

import pytest

from alip import command
from alip.errors import LONGEST, UserError, one_line, run_command
from tests.fuzz import Escaped, flags, run_case


@pytest.mark.parametrize("target", flags.TARGETS, ids=lambda target: target.name.removeprefix("flags: "))
def test_hostile_values_are_one_line(target, tmp_path):
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run_case(target.make(random.Random(f"{target.name}/{seed}"), folder), target.allowed)


def test_a_parser_that_prints_its_usage_is_found(tmp_path, monkeypatch):
    monkeypatch.delattr(command.CommandParser, "error")
    (target,) = (one for one in flags.TARGETS if one.name == "flags: verify")
    with pytest.raises(Escaped, match="status 2"):
        for seed in range(40):
            folder = tmp_path / str(seed)
            folder.mkdir()
            run_case(target.make(random.Random(seed), folder), target.allowed)


@pytest.mark.parametrize(
    "parse, text, message",
    [
        (command.count, "0", "should be from 1 to"),
        (command.count, "9" * 5000, "should be a whole number"),
        (command.workers, "100000", "should be from 0 to 1024"),
        (command.number(0, 1), "nan", "should be a finite number"),
        (command.number(0), "1e309", "should be a finite number"),
        (command.number(0, 1), "1.5", "should be from 0 to 1"),
        (command.number(), "", "should be a number"),
    ],
)
def test_values_out_of_range(parse, text, message):
    parser = command.CommandParser(prog="x.py")
    parser.add_argument("--value", type=parse)
    with pytest.raises(UserError, match=f"--value: {message}") as error:
        parser.parse_args(["--value", text])
    assert len(str(error.value)) < 300 and "python x.py --help" in str(error.value)


def test_words_that_are_not_utf8():
    """Paths that Parquet, safetensors and JSON could not write."""
    parser = command.CommandParser(prog="x.py")
    parser.add_argument("--output")
    with pytest.raises(UserError, match=r"'a\\udcff' is not valid UTF-8"):
        parser.parse_args(["--output", "a\udcff"])


def test_values_in_range():
    assert command.count("١٢") == 12 and command.number(0, 1)("1e-3") == 1e-3 and command.seed("0") == 0


def test_an_error_is_one_line_that_a_terminal_can_show(capsys, tmp_path):
    assert one_line("a\n b\x1b[31m\udcff 日本") == "a b\\x1b[31m\\udcff 日本"
    assert len(one_line("x" * 5000)) <= LONGEST
    assert str(UserError("classes.txt: class 36 is\n" + "9" * 5000)).startswith("classes.txt: class 36 is 999")
    assert len(str(UserError("9" * 5000))) <= LONGEST

    def refused():
        open(tmp_path / "no" / "file")  # noqa: SIM115

    with pytest.raises(SystemExit) as end:
        run_command(refused)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path}/no/file: No such file or directory; check the path"
    ]


def test_streams_that_are_closed_are_silent(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as end:
        run_command(lambda: print(sys.stdin.read(), sys.stderr.isatty(), file=sys.stderr))
    assert end.value.code == 0


def test_storage_that_fails_under_a_launcher_is_worth_a_restart(monkeypatch, tmp_path):
    monkeypatch.setenv("ALIP_MISTAKES", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        run_command(lambda: open(tmp_path / "gone"))  # noqa: SIM115
    assert list(tmp_path.iterdir()) == []


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        run_command(lambda: __import__("os").close(12345))


@pytest.mark.parametrize("name", ["data2rec", "alip.checkpoint.__main__"])
def test_without_docstrings_as_under_python_oo(name, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "__doc__", None)
    monkeypatch.setattr(sys, "argv", ["command", "--nonsense"])
    with pytest.raises(UserError, match="--help"):
        getattr(module, "arguments" if name == "data2rec" else "_arguments")()
