"""The caption study: its runs, its captions, its filters, its tables from known numbers; nothing is trained."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.shards import ROOT

sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts/demo")]
import caption_study as study  # noqa: E402
from texts import spoiled_caption, wordings  # noqa: E402

ROW = {"key": "google-1f42f", "name": "tiger face", "class": "mammal", "own_text": "tiger face, animal, tiger"}


def test_a_run_that_scores_comes_before_those_that_use_its_scores():
    runs = study.all_runs(3)
    keys = [run.key for run in runs]
    assert len(set(keys)) == len(keys) == 24
    for run in runs:
        assert run.filter != "clipscore" or keys.index(f"k3|spoiled|none|s{run.seed}") < keys.index(run.key)


def test_captions_of_an_image():
    found = wordings(ROW, 5)
    assert found[:3] == wordings(ROW, 3) and len(set(found)) == 5
    assert all("tiger" in one or "mammal" in one for one in found)
    by_class = {"mammal": ["tiger face", "cow", "dog"], "fruit": ["lemon"]}
    spoiled = {spoiled_caption(ROW, by_class, number) for number in range(20)}
    assert len(spoiled) > 3 and not any("tiger" in one for one in spoiled)


def test_what_each_filter_keeps(tmp_path):
    is_spoiled = np.random.default_rng(0).random((100, 3)) < 0.3
    data = SimpleNamespace(is_spoiled=is_spoiled)
    scores = np.arange(300.0).reshape(100, 3)
    np.savez(study.scores_path(tmp_path, study.Run(3, True, "none", 1)), image_caption_similarity=scores)
    kept = {name: study.kept_captions(study.Run(3, True, name, 1), data, tmp_path) for name in study.FILTERS}
    assert kept["none"].all() and np.array_equal(kept["truth"], ~is_spoiled)
    assert np.array_equal(kept["clipscore"], scores >= 89.7) and 180 < kept["random"].sum() < 240


def test_finished_runs_are_skipped_and_the_table_written(tmp_path, monkeypatch, capsys):
    lines = []
    for run in study.all_runs(2):
        row = {"key": run.key, "arm": run.arm, "seed": run.seed, "kept": 100, "still_spoiled": 0.25}
        row |= dict.fromkeys(study.METRICS, 5.0 + run.captions + run.seed)
        lines.append(json.dumps(row | {"auc_image_caption_similarity": 0.8}) + "\n")
    results = tmp_path / "r.jsonl"
    results.write_text("".join(lines))
    words = ["caption_study.py", "--results", results, "--output", tmp_path / "scores", "--seeds", 2]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    monkeypatch.setattr(study, "train_and_measure", lambda *arguments: pytest.fail("a finished run is trained again"))
    assert study.main() == 0
    page = (tmp_path / "r.md").read_text()
    assert "16 of its 16 runs" in page and "0.800 ± 0.000" in page
    assert "| 5 | nothing | 100 | 25.0 % | 10.5 ± 0.5 (2 seeds) | +4.0 ± 0.0 (2 seeds) |" in page
