"""The quickstart's recorded runs: their table, and what the summary says about a row that was not trained here."""

from __future__ import annotations

import json
import sys

import pytest

from alip.errors import UserError
from tests.helpers.shards import ROOT

sys.path.insert(0, str(ROOT / "scripts/demo"))
sys.path.insert(0, str(ROOT / "benchmarks"))
import demo_seeds
import recorded
import summary


def row(objective: str, seed: int, value: float, **more) -> dict:
    numbers = {name: dict.fromkeys(demo_seeds.COLUMNS, value) for name in demo_seeds.SPLITS.values()}
    return {"objective": objective, "seed": seed, "epochs": 48, "batch_size": 256, "numbers": numbers, **more}


def write(path, *rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_table_has_means_with_spread_and_every_seed(tmp_path):
    rows = [row("alip", 0, 10.0), row("alip", 1, 14.0), row("clip-text", 0, 2.0)]
    read = demo_seeds.read_rows(write(tmp_path / "runs.jsonl", *rows))
    pixels = {name: dict.fromkeys(demo_seeds.COLUMNS, 7.5) for name in demo_seeds.SPLITS.values()}
    page = demo_seeds.table(read, pixels)
    assert page.count("| **ALIP**, 2 seeds | 12.0 ± 2.8 |") == 2
    assert page.count("| **CLIP on the raw texts**, 1 seed | 2.0 | 2.0 |") == 2
    assert page.count("| ALIP, seed 1 | 14.0 |") == 2


def test_a_recorded_run_is_found_or_one_line(tmp_path):
    path = write(tmp_path / "runs.jsonl", row("alip", 0, 1.0), row("clip-text", 0, 2.0))
    assert recorded.recorded_run(path)["numbers"]["demo-style"]["top1"] == 2.0
    with pytest.raises(UserError, match="demo_seeds"):
        recorded.recorded_run(path, seed=1)
    with pytest.raises(UserError, match="no such file"):
        recorded.recorded_run(tmp_path / "none.jsonl")
    path.write_text('\n{"objective": "alip", "seed": 0}\n')
    with pytest.raises(UserError, match=r"line 2: not an object with objective, seed, numbers"):
        recorded.recorded_run(path)


@pytest.mark.parametrize("epochs, words", [(48, "the same samples in the same order"), (4, "NOT those")])
def test_the_summary_says_whether_the_recorded_run_is_comparable(tmp_path, monkeypatch, epochs, words):
    monkeypatch.setattr(summary, "CLIP", write(tmp_path / "runs.jsonl", row("clip-text", 0, 2.0)))
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"arguments": {"epochs": epochs, "batch_size": 256, "seed": 0}}))
    numbers, note = summary.clip_numbers(run, None)
    assert numbers["demo-concept"]["text_to_image_R@1"] == 2.0
    assert "recorded" in note and words in note


def test_the_repository_has_the_recorded_run_of_the_quickstart():
    run = recorded.recorded_run(recorded.CLIP)
    assert {"demo-style", "demo-concept"} == run["numbers"].keys()
    assert len(run["answers"]) == 10
