"""`train.py --check`: reports what would run and whether it can begin, and leaves no trace."""

from types import SimpleNamespace

import pytest

from alip.errors import UserError
from alip.train import check
from alip.train.arguments import parse_arguments
from alip.train.preflight import check_command
from tests.helpers.train_runs import train_here


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_reports_what_would_run_and_writes_nothing(flags, tmp_path, capsys):
    options = ["--accum-freq", "2", "--batch-size", "4", "--lock-image", "--wd", "0.3", "--output", tmp_path / "a/run"]
    assert train_here(*flags, *options, "--check") == 0
    printed = capsys.readouterr().out
    for expected in (
        "52 samples",
        "8 (4 x 2 micro-batches x 1 ranks)",
        "12 steps, 6 an epoch",
        "AdamW: weight_decay [0.3, 0.0]",
        "fused True",
        "one-cycle, learning rate at most 0.001, 1 steps of warm-up",
        "cpu, fp32",
        "images (4, 3, 32, 32), texts (4, 77)",
        "from the beginning",
        "nothing was trained or written",
    ):
        assert expected in printed, expected
    assert listing(tmp_path) == []


def test_reports_where_a_run_would_resume(flags, tmp_path, capsys):
    options = [*flags, "--output", tmp_path / "run", "--steps", "2"]
    train_here(*options)
    before = listing(tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        train_here(*options, "--check")
    assert train_here(*options, "--check", "--resume", "latest") == 0
    assert "resumes at step 2" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"recipe lr: was 0\.001, now 0\.5"):
        train_here(*options, "--check", "--resume", "latest", "--lr", "0.5")
    assert train_here(*options, "--check", "--resume", "latest", "--lr", "0.5", "--resume-force") == 0
    assert "recipe lr: was 0.001, now 0.5" in capsys.readouterr().out
    assert listing(tmp_path) == before


@pytest.mark.parametrize("words", [["--lock-text"], ["--opt", "timm/lion"]])
def test_what_cannot_be_resumed_is_found_by_both_checks(flags, tmp_path, words):
    """--resume-force lets the settings pass; whether the state fits is seen when it is restored."""
    options = [*flags, "--output", tmp_path / "run", "--steps", "2"]
    train_here(*options)
    again = [*options, "--resume", "latest", "--resume-force", *words]
    message = "checkpoint trains other parameters" if "--lock-text" in words else "checkpoint's optimizer is AdamW"
    with pytest.raises(UserError, match=message):
        train_here(*again, "--check")
    with pytest.raises(UserError, match=message):
        check_command(parse_arguments([str(word) for word in again]))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--train-data", "no/such/data"], "no/such/data"),
        (["--batch-size", "1000"], "52"),
        (["--eval-retrieval", "no-such-set"], "no-such-set"),
        (["--resume", "no/such/checkpoint"], "no/such/checkpoint"),
        (["--opt", "timm/nothing"], "timm/NAME"),
    ],
)
def test_what_would_fail_fails(flags, tmp_path, words, message):
    with pytest.raises(UserError, match=message.replace("/", ".")):
        train_here(*flags, "--output", tmp_path / "run", "--check", *words)


def test_output_that_cannot_be_written(flags, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        train_here(*flags, "--check", "--output", tmp_path / "file")
    with pytest.raises(UserError, match="is a file"):
        train_here(*flags, "--check", "--output", tmp_path / "file" / "run")
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="MB are free"):
        train_here(*flags, "--check", "--output", tmp_path / "run")
    monkeypatch.setattr(check.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="not writable"):
        train_here(*flags, "--check", "--output", tmp_path / "run")


def test_debug_reports_the_same_and_trains(flags, tmp_path, capsys):
    assert train_here(*flags, "--steps", "1", "--debug", "--output", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "AdamW: weight_decay" in printed and "finished after 1 steps" in printed
