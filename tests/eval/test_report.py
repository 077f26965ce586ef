"""Reports over groups of runs: spread, tests, formats, and the page of their training."""

import csv
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from scipy import stats

from alip.errors import UserError
from alip.eval import bootstrap, outcomes, report, results
from alip.eval.html_page import ASSETS
from alip.eval.report import significance, training_page
from alip.eval.report.document import as_latex, build
from alip.eval.report.tables import Cell, Table, TableRow, latex_escape, to_csv, to_latex, to_markdown
from tests.helpers.browser import find_browser, open_page

EVIL = "a_b & 50%<script>"
DATASETS = {"pets": "mean_per_class", "mine": "top1"}
SKILLS = {"a": 1.2, "b": 0.4}


def write_run(folder, seed, skill, steps=30):
    """A run folder as training and evaluation leave it; skill moves its logits to the right class."""
    generator = torch.Generator().manual_seed(seed)
    entries = []
    for number, (name, metric) in enumerate(DATASETS.items()):
        labels = torch.arange(6).repeat_interleave(20)
        base = torch.randn(120, 6, generator=torch.Generator().manual_seed(number))
        logits = base + 0.6 * torch.randn(120, 6, generator=generator)
        logits[torch.arange(120), labels] += skill
        items = outcomes.classification_outcomes(labels, outcomes.class_ranks(logits, labels))
        numbers = bootstrap.point_values(items, metric) | {"images": 120, "classes": 6, "unreadable": 0}
        about = {"weights_hash": f"{seed}{skill}", "dataset_hash": name, "weights": "model", "precision": "fp32"}
        entry = results.entry(
            "zeroshot",
            "standard",
            numbers,
            [],
            dataset=name,
            primary_metric=metric,
            benchmark=None,
            intervals=bootstrap.intervals(items, metric),
            step=steps,
            **about,
        )
        entries.append(entry)
        (folder / "results").mkdir(parents=True, exist_ok=True)
        outcomes.save(folder / "results", entry["id"], items)
    results.save(folder / "results", entries)
    (folder / "run.json").write_text(json.dumps({"arguments": {"seed": seed}}))
    rows = [
        {
            "kind": "train",
            "step": s,
            "epoch": s / 10,
            "samples": 8 * s,
            "loss": 5 / (s + seed + 1),
            "lr": 0.1,
            "time": 1e9 + s,
        }
        | {"sample_weight": 0.5, "samples_per_s": 100.0 + seed}
        for s in range(1, steps)
    ]
    rows += [{"kind": "eval", "step": 20, "task": "zeroshot", "dataset": EVIL, "primary": 10.0 + skill, "time": 1e9}]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return [
        write_run(folder / f"{name}-s{seed}", seed, skill)
        for name, skill in (("a", 1.2), ("b", 0.4))
        for seed in (0, 1, 2)
    ]


def page_of(words, tmp_path, capsys, *flags):
    assert report.main([*map(str, words), "--output", str(tmp_path), *flags]) == 0
    return capsys.readouterr().out


def values(runs, dataset, name="primary"):
    return [next(e for e in results.load(run) if e["dataset"] == dataset)["numbers"][name] for run in runs]


def test_groups_have_means_deviations_and_paired_t(runs, tmp_path, capsys):
    groups = ["--group", "clip", *runs[3:], "--group", "alip", runs[2], runs[0], runs[1]]
    page = page_of(groups, tmp_path, capsys, "--no-plots")
    first, second = values(runs[:3], "pets"), values(runs[3:], "pets")
    assert f"**{np.mean(first):.1f}** ± {np.std(first, ddof=1):.1f}" in page
    assert f"{np.mean(second):.1f} ± {np.std(second, ddof=1):.1f}" in page and f"**{np.mean(second):.1f}**" not in page
    expected = stats.ttest_rel(first, second)
    rows = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert [row["measured"] for row in rows] == [
        f"Zero-shot classification: {one}" for one in ("pets", "mine", "mean of 2")
    ]
    assert rows[0]["test"] == "paired t over 3 seeds" and (rows[0]["first"], rows[0]["second"]) == ("alip", "clip")
    assert float(rows[0]["p"]) == pytest.approx(expected.pvalue)
    assert float(rows[0]["difference"]) == pytest.approx(np.mean(first) - np.mean(second))
    means = [np.mean([values([run], name)[0] for name in DATASETS]) for run in runs]
    assert float(rows[2]["p"]) == pytest.approx(stats.ttest_rel(means[:3], means[3:]).pvalue)
    # Unequal seeds: Welch.
    page_of(["--group", "clip", *runs[3:5], "--group", "alip", *runs[:3]], tmp_path, capsys, "--no-plots")
    rows = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert rows[0]["test"] == "Welch's t, 3 and 2 runs"
    assert float(rows[0]["p"]) == pytest.approx(stats.ttest_ind(first, second[:2], equal_var=False).pvalue)
    page_of(["--group", "clip", *runs[3:], "--group", "one", runs[0]], tmp_path, capsys, "--no-plots")
    rows = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert rows[0]["p"] == "" and "one run against several" in rows[0]["test"]


def test_two_runs_are_tested_over_the_items(runs, tmp_path, capsys):
    page = page_of([runs[3], runs[0]], tmp_path, capsys, "--no-plots")
    rows = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert [row["test"] for row in rows] == ["paired bootstrap", "McNemar, exact", "paired bootstrap"]
    hits = []
    for run in (runs[0], runs[3]):
        entry = next(one for one in results.load(run) if one["dataset"] == "mine")
        hits.append(outcomes.load(run / "results", entry["id"])["rank"] == 0)
    only = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
    assert float(rows[1]["p"]) == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    assert float(rows[1]["difference"]) == pytest.approx(100 * (only[0] - only[1]) / 120)
    assert float(rows[1]["low"]) < float(rows[1]["difference"]) < float(rows[1]["high"])
    assert "3 tests, two-sided" in page and "(a–b): 95 % interval" in page
    # Without outcomes there is no test, and the reason is in the table.
    bare = tmp_path / "bare" / "results"
    shutil.copytree(runs[0] / "results", bare)
    shutil.rmtree(bare / "outcomes")
    assert "none: no outcomes of the items" in page_of([runs[3], bare.parent], tmp_path, capsys, "--no-plots")


def test_the_same_run_twice_differs_by_nothing(runs):
    items = outcomes.load(runs[0] / "results", results.load(runs[0])[0]["id"])
    for metric in ("top1", "mean_per_class"):
        found = significance.between_items(("a", "b", "c"), items, items, (50.0, 50.0), metric)
        assert found.p == 1 and found.interval == (0, 0)
    assert significance.mcnemar(np.array([True, False]), np.array([True, False])) == 1.0
    assert (
        "the same for every seed" in significance.between_runs(("a", "b", "c"), ([1, 2], [2, 3]), ([0, 1], [0, 1])).test
    )


def test_p_values_are_uniform_without_a_difference():
    """Two models of equal skill, many times: a nominal 5 % test rejects about one in twenty."""
    rng = np.random.default_rng(0)
    labels = torch.arange(4).repeat_interleave(25)
    rejected = {"top1": 0, "mean_per_class": 0}
    for _ in range(200):
        both = [outcomes.classification_outcomes(labels, torch.tensor(rng.integers(0, 2, 100))) for _ in range(2)]
        for metric in rejected:
            rejected[metric] += significance.between_items(("", "", ""), *both, (0.0, 0.0), metric).p < 0.05
    assert rejected["top1"] <= 18 and 2 <= rejected["mean_per_class"] <= 22


def test_holm():
    one = significance.Difference("a", "b", "c", 0.0, None, None, "none")
    ps = [0.01, 0.04, 0.03, None, 0.005]
    found = [d.adjusted for d in significance.holm([significance.replace(one, p=p) for p in ps])]
    assert found[3] is None
    assert [found[i] for i in (0, 1, 2, 4)] == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's own example


def test_a_group_with_runs_that_are_not_measured_says_so(runs, tmp_path, capsys):
    part = tmp_path / "a-part"
    shutil.copytree(runs[1], part)
    entries = [entry for entry in results.load(part) if entry["dataset"] == "pets"]
    (part / "results" / "results.json").unlink()
    results.save(part / "results", entries)
    groups = ["--group", "clip", *runs[3:], "--group", "alip", runs[0], part, runs[2]]
    page = page_of(groups, tmp_path / "report", capsys, "--no-plots")
    assert "| alip (standard, 2 to 3 of 3 runs) |" in page and "| clip (standard) " in page


def test_groups_and_baselines_are_checked(runs, tmp_path):
    for words, message in (
        ([], "which runs"),
        (["--group", "a"], "names no run"),
        (["--group", "a", runs[0], runs[0]], "named twice"),
        ([runs[0], "--group", "a-s0", runs[1]], "that name is taken"),
        ([runs[0], runs[1], "--baseline", "x"], "no such run or group; there are a-s0, a-s1"),
        ([tmp_path], r"has no results\.json"),
    ):
        with pytest.raises(UserError, match=message):
            report.main([*map(str, words), "--output", str(tmp_path)])


@pytest.mark.parametrize("by", ["name", "folder"])
def test_the_baseline_is_the_second_of_every_difference(runs, tmp_path, capsys, by):
    baseline = "b-s0" if by == "name" else f"{runs[3]}/"
    page_of([*runs[:2], runs[3], "--baseline", baseline], tmp_path, capsys, "--no-plots")
    rows = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert {row["second"] for row in rows} == {"b-s0"} and {row["first"] for row in rows} == {"a-s0", "a-s1"}


def test_several_checkpoints_of_a_run_are_told_apart_in_its_tests(runs, tmp_path, capsys):
    """The first run's newest one is what the others are tested against, whichever was evaluated last."""
    both = tmp_path / "both"
    shutil.copytree(runs[0], both)
    older = write_run(tmp_path / "older", 1, 0.4, steps=10)
    shutil.copytree(older / "results" / "outcomes", both / "results" / "outcomes", dirs_exist_ok=True)
    results.save(both / "results", results.load(older))
    page_of([both, runs[3]], tmp_path, capsys, "--no-plots")
    rows = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert {(row["first"], row["second"]) for row in rows} == {("b-s0", "both (standard, step 30)")}
    expected = values(runs[3:4], "mine")[0] - values(runs[:1], "mine")[0]
    assert float(rows[1]["difference"]) == pytest.approx(expected)
    page_of([runs[3], both], tmp_path, capsys, "--no-plots")
    rows = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert {row["first"] for row in rows} == {f"both (standard, step {step})" for step in (10, 30)}


def test_two_primary_metrics_of_a_dataset_are_two_columns(runs, tmp_path):
    """As DataComp's and VTAB+'s are."""
    first, second = ([dict(one) for one in results.load(run)] for run in runs[:2])
    second[1]["primary_metric"] = "mean_per_class"
    page = report.markdown({"a": first, "b": second})
    assert "mine [top1]" in page and "mine [mean_per_class]" in page and " pets |" in page


def test_formats(runs, tmp_path, capsys):
    latex = page_of(runs[:2], tmp_path, capsys, "--no-plots", "--format", "latex")
    plain = page_of(runs[:2], tmp_path, capsys, "--no-plots", "--format", "latex", "--no-intervals")
    lines = page_of(runs[:2], tmp_path, capsys, "--no-plots", "--format", "csv").split("written")[0]
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 2 and r"\textbf{" in latex
    assert re.search(r"\(\d[\d.]*--", latex) and not re.search(r"\(\d[\d.]*--", plain)
    rows = list(csv.DictReader(io.StringIO(lines)))
    own = [row for row in rows if row["published"] == "0" and row["column"] == "mine"]
    assert [float(row["mean"]) for row in own] == values(runs[:2], "mine")
    assert [row["best"] for row in own] == [
        str(int(v == max(values(runs[:2], "mine")))) for v in values(runs[:2], "mine")
    ]


def test_nothing_in_a_name_is_markup():
    cells = [Cell((12.34,), (11.0, 13.0)), Cell((-1.0, 2.0)), Cell()]
    rows = [TableRow(EVIL, cells), TableRow("=cmd()", [Cell((12.3,)), *cells[1:]])]
    table = Table(EVIL, ["x_1", "→ ~^\\", "#"], rows)
    latex = to_latex(table)
    assert r"a\_b \& 50\%\textless{}script\textgreater{}" in latex and r"$\rightarrow$ \textasciitilde{}" in latex
    assert latex.count(r"\textbf{12.3}") == 2  # equal as printed
    assert latex_escape("a\nb") == "a b" and "'=cmd()" in to_csv([table])
    marked = Table("t", ["x"], [TableRow("marked", [Cell((1.0,), mark=2)])])
    assert to_csv([marked], ["first", "=why"]).endswith(",0,'=why\n")
    page = to_markdown(table)
    assert "**12.3** (11.0–13.0)" in page and "**0.5** ± 2.1" in page and "–" in page


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX installed")
def test_latex_compiles(runs, tmp_path):
    found = build({EVIL: results.load(runs[0]), "b~^": results.load(runs[1])})
    text = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + as_latex(found) + "\\end{document}"
    (tmp_path / "t.tex").write_text(text)
    subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


# The page of the runs' training --------------------------------------------------------------------------------


def test_curves_are_thinned_and_plain(runs, tmp_path):
    content = training_page.collect({"a": runs[0], "b": tmp_path}, {"g": ["a", "b"]})
    assert [run["name"] for run in content["runs"]] == ["a"]  # the other has no log
    curves = content["runs"][0]["curves"]
    assert set(curves) == {"loss", "lr", "sample_weight", "samples_per_s", f"eval zeroshot/{EVIL}"}
    assert curves["loss"]["step"] == list(range(1, 30)) and curves["loss"]["hours"][-1] == pytest.approx(
        28 / 3600, rel=1e-4
    )
    evaluated = curves[f"eval zeroshot/{EVIL}"]
    del evaluated["hours"]
    assert evaluated == {"step": [20], "samples": [160], "epoch": [2], "value": [11.2]}
    long = {"value": np.where(np.arange(5000) % 7 == 0, math.nan, np.arange(5000.0)), "step": np.arange(5000)}
    thin = training_page._thinned(long)
    assert len(thin["step"]) == training_page.POINTS and thin["step"][-1] == 4999 and thin["value"][0] is None


def test_old_logs_and_runs_without_one(tmp_path, runs):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.0, "pairs_per_s": 5.0}\n')
    assert training_page.collect({"a": tmp_path}, {"a": ["a"]})["runs"][0]["curves"]["samples_per_s"]["value"] == [5]
    (tmp_path / "metrics.jsonl").write_text('{"kind": "event", "step": 0}\n')
    assert training_page.write({"a": tmp_path}, {"a": ["a"]}, tmp_path) == []


def test_browser_shows_the_page(runs, tmp_path):
    find_browser()
    evil = tmp_path / "<b>run&amp;"
    shutil.copytree(runs[0], evil)
    report.main(
        ["--group", EVIL, str(evil), str(runs[1]), "--group", "clip", *map(str, runs[3:]), "--output", str(tmp_path)],
        show=lambda text: None,
    )
    page = tmp_path / "training.html"
    own = page.read_text(encoding="utf-8").replace((ASSETS / "plotly-basic.min.js").read_text(encoding="utf-8"), "")
    assert "default-src 'none'" in own and not re.search(r"""(src|href)\s*=\s*["']|url\(|fetch\(""", own)
    html = open_page(page, tmp_path / "profile", state="mean=1&x=epoch&hide=b-s1")
    assert 'data-ready="yes"' in html and 'data-plots="5"' in html and 'data-shown="4"' in html
    assert f"{EVIL}: <b>run&amp;".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in html
    assert "<b>" not in html.split('id="data"')[0]
    assert html.count('class="trace scatter') == 5 * 2  # a mean for each group in every plot
