"""The noise study: which runs it has, that it resumes, its tables from known numbers. Training is not tested here."""

from __future__ import annotations

import json
import sys

import pytest

from tests.helpers.shards import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import noise_study
import noise_study_report as report


def row(arm, seed, value, mismatched=40, wrong=10, **more):
    key = f"{arm}|m{mismatched}|c{wrong}|s{seed}"
    metrics = dict.fromkeys(report.METRICS, value)
    rates = {"mismatched": mismatched, "wrong_captions": wrong}
    return {"key": key, "arm": arm, "seed": seed, **rates, **metrics, "samples": 100, "still_mismatched": 0.4, **more}


def test_all_runs():
    runs = noise_study.all_runs(3)
    keys = [run.key for run in runs]
    assert len(set(keys)) == len(keys) == 3 * (6 * 4 + 3 + 6 + 3 + 3 + 3)
    assert {(run.mismatched, run.wrong_captions) for run in runs[:12]} == {(40, 10)}
    for run in runs:  # what a cleaning arm needs comes before it
        assert run.scorer is None or keys.index(run.scorer.key) < keys.index(run.key)
    assert {run.arm for run in runs if run.scorer} == {*noise_study.CLEANING, "gates of CLIP, captions"}


def test_paired_differences_and_errors():
    rows = [row("ALIP", seed, 10 + seed) for seed in range(3)] + [row("no gates", seed, 9.0) for seed in (0, 2)]
    alip, plain = (report.values(rows, arm, (40, 10), report.METRICS[0]) for arm in ("ALIP", "no gates"))
    assert report.paired(alip, plain) == {0: 1.0, 2: 3.0}
    assert report.mean_and_error({0: 1.0, 1: 2.0, 2: 3.0}) == pytest.approx((2.0, 1 / 3**0.5))
    page = report.tables(rows, 108)
    assert "| 40 % | 10 % | – | – | 9.0 ± 0.0 (2 seeds) | 11.0 ± 0.6 |" in page
    assert "+2.0 ± 1.0 (2 seeds)" in page
    assert "(1 seed)" in report.tables(rows[:1], 108)


def test_finished_runs_are_skipped_and_tables_written(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.jsonl"
    trace = {"step": [10, 20]}
    trace |= {f"{w}/{g}": [1.0, 0.5] for w in ("sample_weight", "text_weight", "caption_weight") for g in report.GROUPS}
    lines = [row(arm, seed, 5.0 + seed, trace=trace) for arm in report.MAIN for seed in range(3)]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["noise_study.py", "--results", results, "--images", tmp_path / "images", "--only", "m40.c10", "--list"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    assert noise_study.main() == 0
    listed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("done") for line in listed) == 12
    monkeypatch.setattr(sys, "argv", [str(word) for word in [*words[:-3], "--table"]])
    assert noise_study.main() == 0
    assert f"12 of its {len(noise_study.all_runs(3))} runs" in (tmp_path / "results.md").read_text()
    assert {path.name for path in (tmp_path / "images").iterdir()} >= {"noise_study.png", "weights_during_training.png"}


def test_a_cleaning_arm_brings_the_run_that_scores_it(tmp_path):
    cleaning = [run for run in noise_study.all_runs(1) if run.keep]
    scorer = cleaning[0].scorer
    assert scorer in noise_study.all_runs(1)
    assert noise_study._with_scorers(cleaning, tmp_path) == [scorer, *cleaning]
    noise_study.study.scores_path(tmp_path, scorer).touch()
    assert noise_study._with_scorers(cleaning, tmp_path) == cleaning
