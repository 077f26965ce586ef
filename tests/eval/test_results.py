"""What a number is of: nothing is published under the name of another checkpoint, dataset, list of prompts or EMA."""

import copy
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import eval_retrieval
import eval_zeroshot
from alip.checkpoint import atomic_save, load_model
from alip.checkpoint import export as exporting
from alip.errors import UserError
from alip.eval import report, results
from alip.eval.datasets import open_retrieval
from alip.eval.evaluate import classification_table
from alip.eval.metrics import chance_of
from alip.model import create_model
from alip.model.weights import weights_hash
from tests.helpers import archives
from tests.helpers.pairs import write_classes, write_pairs

QUIET = ["--workers", "0", "--device", "cpu", "--no-plots"]


def entries_of(folder):
    return results.load(folder)


def retrieval(*flags):
    return eval_retrieval.main([*map(str, flags), *QUIET])


def zeroshot(*flags):
    return eval_zeroshot.main([*map(str, flags), *QUIET])


@pytest.fixture
def two_steps(model, tmp_path):
    """A run folder with the checkpoints of steps 20 and 40; the second has an EMA too."""
    folder = tmp_path / "run"
    for step in (20, 40):
        torch.manual_seed(step)
        weights = create_model(model.config).state_dict()
        content = {"format": "alip-checkpoint", "version": 1, "model": weights, "ema": None}
        if step == 40:
            content["ema"] = {
                name: value + 0.01 if value.is_floating_point() else value for name, value in weights.items()
            }
        content |= {"model_config": model.config, "step": step, "samples": 2 * step}
        atomic_save(content, folder / "checkpoints" / f"step-{step:08d}.pt")
    (folder / "run.json").write_text("{}")
    return folder


def test_two_checkpoints_of_one_folder(two_steps, tmp_path):
    """Both stay in results.json, the report names the step of each, and a card has only those of its own weights."""
    captions = write_pairs(tmp_path / "pairs")
    for step in (20, 40):
        retrieval("--checkpoint", two_steps / f"checkpoints/step-{step:08d}.pt", "--dataset", captions)
    first, second = entries_of(two_steps)
    assert (first["step"], second["step"]) == (20, 40) and first["weights_hash"] != second["weights_hash"]
    assert first["id"] != second["id"] and first["dataset_hash"] == second["dataset_hash"]
    page = report.markdown({"run": entries_of(two_steps)})
    assert "run (standard, step 20)" in page and "run (standard, step 40)" in page

    model = load_model(two_steps / "checkpoints/step-00000020.pt")
    exporting.export(model, "open_clip", tmp_path / "card", run=two_steps, metadata=model.metadata)
    card = re.sub(" +", " ", (tmp_path / "card" / "README.md").read_text())
    assert "weights after 20 optimizer steps" in card
    shown = {
        name: f" {first['numbers'][name]:.2f} |" for name in ("text_to_image_mean_rank", "image_to_text_mean_rank")
    }
    for name, value in shown.items():
        rows = [line for line in card.splitlines() if f"| {name} |" in line]
        assert len(rows) == 1 and rows[0].endswith(value)


def test_two_models_in_one_output(two_steps, model, tmp_path):
    """Each has its own name in the report that the second command writes, though both are of one step."""
    captions, out = write_pairs(tmp_path / "pairs", images=5), tmp_path / "out"
    other = tmp_path / "other"
    shutil.copytree(two_steps, other)
    path = other / "checkpoints/step-00000040.pt"
    content = torch.load(path, weights_only=True)
    atomic_save({**content, "model": content["ema"]}, path)
    for run in (two_steps, other):
        eval_retrieval.main(["--checkpoint", str(run), "--dataset", str(captions), "--output", str(out), *QUIET[:-1]])
    page = (out / "report.md").read_text()
    assert "| run (standard)" in page and "| other (standard)" in page
    labels = {row.label for row in report.rows_of({"out": entries_of(out)}, "retrieval")}
    assert labels == {"out (standard, model run, step 40)", "out (standard, model other, step 40)"}
    for one in (entries := entries_of(out)):
        one["checkpoint"] = "run"
    labels = {row.label for row in report.rows_of({"out": entries}, "retrieval")}
    assert labels == {f"out (standard, weights {one['weights_hash']})" for one in entries}


def test_probes_of_two_folders_of_one_name(run, tmp_path):
    """Both stay; and a card tells shots, and a wrong number of images."""
    for number, place in enumerate(("a", "b")):
        for part in ("train", "test"):
            classes = write_classes(tmp_path / place / "sorts" / part)
            Image.new("RGB", (30, 30), (number, 0, 0)).save(next(classes.rglob("*.png")))
    flags = ("--datasets", tmp_path / "a/sorts", tmp_path / "b/sorts", "--task", "few-shot", "--shots", 1, 2)
    zeroshot("--checkpoint", run, *flags, "--seeds", 1, "--output", tmp_path / "results")
    entries = entries_of(tmp_path / "results")
    assert len(entries) == 4 and len({one["dataset_hash"] for one in entries}) == 2
    entries[0]["mark"] = "9 images where sorts has 10"
    content = {"format": "alip-results", "version": 2, "entries": entries}
    (tmp_path / "results/results.json").write_text(json.dumps(content))
    exporting.export(load_model(run), "open_clip", tmp_path / "card", run=tmp_path)
    card = (tmp_path / "card" / "README.md").read_text()
    assert "few-shot (1 shot, 1 seed, standard" in card and "few-shot (2 shots, 1 seed, standard" in card
    contents = [f"sorts [content {one['dataset_hash'][:7]}]" for one in entries]
    assert f"{contents[0]} (9 images where sorts has 10; not comparable)" in card and f"| {contents[-1]} " in card
    assert f"| {entries[0]['numbers']['C']:g} |" in re.sub(" +", " ", card)


def test_ema_is_recorded_and_beside_the_plain_weights(two_steps, tmp_path):
    captions = write_pairs(tmp_path / "pairs", images=5)
    for weights in ("model", "ema"):
        retrieval("--checkpoint", two_steps, "--dataset", captions, "--weights", weights)
    assert [one["weights"] for one in entries_of(two_steps)] == ["model", "ema"]
    page = report.markdown({"run": entries_of(two_steps)})
    assert "step 40, EMA)" in page


def test_given_prompts_and_names_do_not_replace_the_datasets_own(run, tmp_path):
    classes = write_classes(tmp_path / "sorts")
    (tmp_path / "names.json").write_text(json.dumps({"sorts": [f"sort {n}" for n in range(7)]}))
    (tmp_path / "prompts.json").write_text(json.dumps({"sorts": ["a {}.", "one {}."]}))
    common = ("--checkpoint", run, "--datasets", classes, "--output", tmp_path / "out")
    zeroshot(*common)
    zeroshot(*common, "--prompts", tmp_path / "prompts.json")
    zeroshot(*common, "--classnames", tmp_path / "names.json")
    own, prompts, names = entries_of(tmp_path / "out")
    assert own["given"] == {} and list(prompts["given"]) == ["prompts"] and list(names["given"]) == ["classnames"]
    assert own["prompts_hash"] == names["prompts_hash"] != prompts["prompts_hash"]
    assert own["classnames_hash"] == prompts["classnames_hash"] != names["classnames_hash"]
    page = report.markdown({"run": entries_of(tmp_path / "out")})
    for label in ("(standard)", "(standard, prompts from prompts.json)", "(standard, classnames from names.json)"):
        assert f"run {label}" in page
    # The same file name with other content is a row of its own.
    (tmp_path / "prompts.json").write_text(json.dumps({"sorts": ["the {}."]}))
    zeroshot(*common, "--prompts", tmp_path / "prompts.json")
    rows = report.rows_of({"run": entries_of(tmp_path / "out")}, "zeroshot")
    assert len(rows) == 4 and len({row.label for row in rows}) == 4
    zeroshot(*common)  # the same again replaces
    assert len(entries_of(tmp_path / "out")) == 4


def test_two_caption_files_of_one_folder(run, tmp_path):
    """coco/my.jsonl and coco/other.jsonl are neither each other nor the benchmark "coco"."""
    folder = write_pairs(tmp_path / "coco").parent
    lines = (folder / "captions.jsonl").read_text().splitlines()
    (folder / "my.jsonl").write_text("\n".join(lines[:9]))
    (folder / "other.jsonl").write_text("\n".join(lines[9:]))
    for name in ("my", "other", "captions"):
        flags = ["--checkpoint", run, "--dataset", folder / f"{name}.jsonl", "--output", tmp_path / "out"]
        eval_retrieval.main([*map(str, flags), "--workers", "0", "--device", "cpu"])
    found = entries_of(tmp_path / "out")
    assert [one["dataset"] for one in found] == ["coco/my", "coco/other", "coco"]
    assert [one["benchmark"] for one in found] == [None] * 3
    page = (tmp_path / "out" / "report.md").read_text()
    assert "[P]" not in page  # no published row for somebody's own file
    plots = {path.name for path in (tmp_path / "out").glob("gallery-*.png")}
    assert {"gallery-coco-my.png", "gallery-coco-other.png", "gallery-coco.png"} <= plots


def test_same_name_other_content(run, tmp_path):
    """Two folders of one name, and one folder whose images changed."""
    out = tmp_path / "out"
    paths = [write_pairs(tmp_path / side / "pairs", images=6, seed=seed) for seed, side in enumerate(("a", "b"))]
    for path in paths:
        eval_retrieval.main(f"--checkpoint {run} --dataset {path} --output {out} --workers 0 --device cpu".split())
    Image.new("RGB", (20, 20)).save(paths[1].parent / "images" / "3.png")
    retrieval("--checkpoint", run, "--dataset", paths[1], "--output", out)
    found = entries_of(out)
    assert [one["dataset"] for one in found] == ["pairs"] * 3 and len({one["dataset_hash"] for one in found}) == 3
    assert len(list(out.glob("gallery-pairs*-image-to-text.png"))) == 2  # the second does not overwrite the first
    titles = list(report.columns_of(report.rows_of({"run": found}, "retrieval"), "retrieval").values())
    assert len(set(titles)) == 3 and all(title.startswith("pairs [content ") for title in titles)


def test_content_is_the_same_in_every_folder(run, tmp_path):
    here = write_pairs(tmp_path / "pairs", images=6)
    shutil.copytree(here.parent, tmp_path / "elsewhere" / "pairs", copy_function=shutil.copy)
    for path in (here, tmp_path / "elsewhere" / "pairs" / "captions.jsonl"):
        retrieval("--checkpoint", run, "--dataset", path, "--output", tmp_path / "out")
    assert len(entries_of(tmp_path / "out")) == 1


def test_a_dataset_of_the_wrong_size_is_marked(run, tmp_path, monkeypatch, capsys):
    archives.write("food101", tmp_path, monkeypatch)
    zeroshot("--checkpoint", run, "--datasets", "food101", "--data-root", tmp_path, "--output", tmp_path / "out")
    (entry,) = entries_of(tmp_path / "out")
    assert entry["expected_images"] == [25250] and entry["numbers"]["images"] == 101
    assert "warning: 101 images where food101 has 25,250" in capsys.readouterr().out
    page = report.markdown({"run": [entry]})
    assert "[1]: 101 images where food101 has 25,250; not comparable." in page
    assert re.search(rf"{entry['numbers']['primary']:.1f} \([0-9.–]*\) \[1\] \|", page)
    assert page.count("[1] |") == 2  # the mean's, too
    other = {**entry, "id": "b", "dataset": "dtd", "benchmark": "dtd", "expected_images": [1880]}
    found = report.markdown({"run": [entry, other]})
    assert "[3]: 101 images where food101 has 25,250; 101 images where dtd has 1,880; not comparable." in found


def test_a_complete_dataset_is_not_marked():
    entry = {"dataset": "food101", "numbers": {"images": 25250, "unreadable": 0}, "expected_images": [25250]}
    assert results.mark_of(entry) == ""
    either = {"dataset": "caltech101", "numbers": {"images": 6084, "unreadable": 0}, "expected_images": [6085, 6084]}
    assert results.mark_of(either) == ""
    unreadable = {"dataset": "mine", "numbers": {"images": 9, "unreadable": 2}, "expected_images": []}
    assert results.mark_of(unreadable) == "2 unreadable images left out"


OLD = {
    "format": "alip-results",
    "version": 1,
    "entries": [
        {
            "kind": "zeroshot",
            "dataset": "cifar10",
            "protocol": "field",
            "metric": "top1",
            "numbers": {
                "top1": 83.1,
                "top5": 99.0,
                "mean_per_class": 83.1,
                "headline": 83.1,
                "images": 10000,
                "classes": 10,
                "unreadable": 0,
            },
            "weights_hash": "0123456789abcdef",
            "precision": "fp32",
            "checkpoint": "runs/old",
            "unreadable": [],
        },
        {
            "kind": "retrieval",
            "dataset": "coco",
            "protocol": "released",
            "numbers": {
                **{f"{way}_R@{k}": 10.0 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)},
                "image_to_text_median_rank": 3.0,
                "text_to_image_median_rank": 4.0,
                "images": 5000,
                "captions": 25010,
                "unreadable": 0,
            },
            "weights_hash": "0123456789abcdef",
            "precision": "fp32",
        },
    ],
}


def test_old_results_still_load(run, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(OLD))
    zeroshot_entry, retrieval_entry = entries_of(tmp_path)
    assert zeroshot_entry["task"] == "zeroshot" and zeroshot_entry["protocol"] == "standard"
    assert zeroshot_entry["numbers"]["primary"] == 83.1 and "headline" not in zeroshot_entry["numbers"]
    assert retrieval_entry["protocol"] == "alip"
    assert "| old (standard)" in report.markdown({"old": entries_of(tmp_path)})
    # What an old entry was measured on is not recorded, so nothing new replaces it.
    captions = write_pairs(tmp_path / "pairs", images=4)
    retrieval("--checkpoint", run, "--dataset", captions, "--output", tmp_path)
    assert [one["task"] for one in entries_of(tmp_path)] == ["zeroshot", "retrieval", "retrieval"]
    assert json.loads((tmp_path / "results.json").read_text())["version"] == 2


def test_published_means_are_printed_as_published():
    """ALIP's 11 rounded values have the mean 41.6; the paper prints 41.7."""
    from alip.eval import published

    numbers = {"top1": 50.0, "mean_per_class": 50.0, "primary": 50.0, "images": 9, "classes": 9, "unreadable": 0}
    entry = {"task": "zeroshot", "protocol": "alip", "numbers": numbers}
    entries = [{**entry, "dataset": name, "benchmark": name} for name in published.ZEROSHOT["ALIP"]]
    lines = report.markdown({"run": entries}).splitlines()
    means = {line.split("[P]")[0].strip("| "): line.split("|")[-2].strip() for line in lines if "[P] " in line}
    assert means["ALIP"] == "41.7" and means == {name: f"{mean:.1f}" for name, mean in published.ZEROSHOT_MEAN.items()}
    # Over some of the datasets the mean is our own.
    lines = report.markdown({"run": entries[:2]}).splitlines()
    assert next(line for line in lines if "ALIP [P]" in line).split("|")[-2].strip() == f"{(83.8 + 51.9) / 2:.1f}"


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda data: data.pop("format"), "not a results file"),
        (lambda data: data.update(version=9), "version: must be one of"),
        (lambda data: data.update(entries={}), "entries: must be array"),
        (lambda data: data["entries"].append(3), r"entries\[2\]: must be object"),
        (lambda data: data["entries"][0].pop("numbers"), r"entries\[0\]: numbers missing"),
        (lambda data: data["entries"][0]["numbers"].update(top1="x"), r"entries\[0\].numbers.top1: must be number"),
        (
            lambda data: data["entries"][1]["numbers"].pop("text_to_image_R@5"),
            r"entries\[1\].numbers: text_to_image_R@5",
        ),
        (
            lambda data: data["entries"][0].update(protocol="none"),
            r"entries\[0\].protocol: must be one of standard, alip",
        ),
    ],
)
def test_malformed_results_are_one_line(tmp_path, break_it, message):
    data = copy.deepcopy(OLD)
    break_it(data)
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as caught:
        results.load(tmp_path)
    assert "results.json" in str(caught.value)


def test_numbers_are_saved_before_anything_is_plotted(run, tmp_path, monkeypatch, capsys):
    from alip.eval.plots import retrieval as retrieval_plots

    seen = []

    def fail(found, path):
        seen.append(len(entries_of(tmp_path / "out")))
        raise ValueError("no such\nglyph")

    monkeypatch.setattr(retrieval_plots, "gallery", fail)
    captions = write_pairs(tmp_path / "pairs", images=4)
    command = f"--checkpoint {run} --dataset {captions} --output {tmp_path / 'out'} --workers 0 --device cpu"
    assert eval_retrieval.main(command.split()) == 0
    assert seen == [1]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == [
        "warning: gallery-pairs could not be plotted (ValueError: no such glyph); the numbers are saved"
    ]


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(run, tmp_path, monkeypatch):
    from alip.eval import evaluate

    monkeypatch.setattr(evaluate, "measure_retrieval", lambda *rest: pytest.fail("measured"))
    captions = write_pairs(tmp_path / "pairs", images=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: .*--output"):
        retrieval("--checkpoint", run, "--dataset", captions, "--output", tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json: not valid JSON"):
        retrieval("--checkpoint", run, "--dataset", captions, "--output", tmp_path / "out")


def test_chance_of_a_random_order():
    rng = np.random.default_rng(0)
    orders = np.argsort(rng.random((20_000, 12)), axis=1)  # of 12 answers 0, 1 and 2 are right
    for k in (1, 5, 10):
        simulated = 100 * (orders[:, :k] < 3).any(1).mean()
        assert report.chance_recall(12, 3, k) == pytest.approx(simulated, abs=1.2)
    assert report.chance_recall(3, 1, 10) == 100


def test_chance_of_a_primary_metric():
    expected = {"top1": 12.5, "mean_per_class": 12.5, "mean_top1_top5": (12.5 + 62.5) / 2, "mean_ap": None}
    assert {metric: chance_of(metric, 8) for metric in expected} == expected
    assert chance_of("roc_auc", 2) == chance_of("top1", 2) == 50 and chance_of("mean_top1_top5", 2) == 75
    entry = {"dataset": "x", "primary_metric": "mean_ap", "numbers": {"images": 9, "classes": 4, "primary": 50.0}}
    assert classification_table("zero-shot", [{**entry, "numbers": {**entry["numbers"], "top1": 1.0}}]).count("–") == 3


def test_weights_hash_is_of_weights_and_configuration(run, model):
    other = copy.deepcopy(model)
    assert weights_hash(load_model(run)) == weights_hash(model) == weights_hash(other)
    with torch.no_grad():
        other.logit_scale += 1
    assert weights_hash(other) != weights_hash(model)


def test_two_files_have_two_names(tmp_path):
    path = write_pairs(tmp_path / "photos", images=3)
    (path.parent / "mine.jsonl").write_text(path.read_text())
    assert open_retrieval(path).name == open_retrieval(path.parent).name == "photos"
    assert open_retrieval(path.parent / "mine.jsonl").name == "photos/mine"


def test_evaluations_side_by_side_lose_no_entry(tmp_path):
    numbers = dict.fromkeys(("top1", "top5", "mean_per_class", "primary", "images", "classes", "unreadable"), 1.0)

    def save(name: str) -> None:
        for number in range(10):
            results.save(tmp_path, [results.entry("probe", "standard", numbers, [], dataset=f"{name}-{number}")])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(save, "abc"))
    found = json.loads((tmp_path / "results.json").read_text())["entries"]
    assert sorted(one["dataset"] for one in found) == sorted(f"{a}-{number}" for a in "abc" for number in range(10))
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
