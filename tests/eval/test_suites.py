"""Suites: DataComp's and VTAB+'s lists and averages, and group metrics, against second sources."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

import eval_zeroshot
from alip.errors import UserError
from alip.eval import metrics
from alip.eval.suite_tasks import DATACOMP, SUITES
from alip.eval.suites import averages, cue_prompt, folder_names, open_suite
from tests.helpers.text_archives import noise as write_noise
from tests.helpers.wds import noise, write_wds

NAMES = ["tench", "gold fish", "shark", "ray", "hen", "ostrich"]


def test_datacomp_is_its_tasklist():
    """As tasklist.yml and aggregate_scores.py define it; the numbers are those of its own file."""
    assert len(DATACOMP) == len({task.key for task in DATACOMP}) == 38
    assert sum(task.size for task in DATACOMP) == 697_369
    special = {task.key: task.metric for task in DATACOMP if task.metric != "top1"}
    assert special == {
        "vtab/caltech101": "mean_per_class",
        "fgvc_aircraft": "mean_per_class",
        "vtab/flowers": "mean_per_class",
        "vtab/pets": "mean_per_class",
        "retrieval/flickr_1k_test_image_text_retrieval": "mean R@1",
        "retrieval/mscoco_2014_5k_test_image_text_retrieval": "mean R@1",
        "misc/winogavil": "jaccard_10-12",
        "wilds/iwildcam": "macro_f1",
        "wilds/fmow": "worst_group",
        "fairness/dollar_street": "worst_group_top5",
        "fairness/geode": "worst_group",
    }
    sizes = {part: sum(task.part == part for task in DATACOMP) for part in {task.part for task in DATACOMP}}
    assert sizes == {"ImageNet dist. shifts": 6, "VTAB": 13, "Retrieval": 3, "ImageNet": 1, "": 15}
    assert folder_names(DATACOMP[0])[0] == "wds_vtab-caltech101_test"
    assert folder_names(next(t for t in DATACOMP if t.title == "GeoDE"))[0] == "wds_geode_test"


def test_vtab_plus_is_clip_benchmarks():
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    assert [task.key for task in SUITES["vtab+"]] == builder.dataset_collection["vtab+"]


def test_averages():
    """The plain mean of all tasks, only when all are there; a part's only when that part is."""
    values = {task.key: float(number) for number, task in enumerate(DATACOMP)}
    found = averages("datacomp", values)
    assert found["average"] == (pytest.approx(np.mean(range(38))), 38, 38)
    vtab = [values[task.key] for task in DATACOMP if task.part == "VTAB"]
    assert found["VTAB"] == (pytest.approx(np.mean(vtab)), 13, 13)
    del values["vtab/svhn"]
    found = averages("datacomp", values)
    assert found["average"] == (None, 37, 38) and found["VTAB"] == (None, 12, 13)
    assert found["Retrieval"][0] is not None


def example(n=200, classes=6, seed=0):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(n, classes)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, classes - 1, n))  # one class has no images
    groups = torch.from_numpy(np.stack([rng.choice([0, 1, 3], n), rng.integers(0, 9, n)], 1))  # group 2 is empty
    return logits, labels, groups


def test_macro_f1_is_wildss():
    """WILDS gives scikit-learn the labels that occur: a class that is only predicted does not count."""
    logits, labels, _ = example()
    theirs = f1_score(labels, logits.argmax(1), average="macro", labels=torch.unique(labels))
    assert metrics.macro_f1(logits, labels) == pytest.approx(100 * theirs)


def test_worst_group_is_of_groups_with_images():
    logits, labels, groups = example()
    hit = (logits.argmax(1) == labels).double()
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).double()
    for function, hits in ((metrics.worst_group, hit), (metrics.worst_group_top5, top5)):
        worst = min(float(hits[groups[:, 0] == group].mean()) for group in (0, 1, 3))
        assert function(logits, labels, groups) == pytest.approx(100 * worst)
    with pytest.raises(UserError, match="needs the groups"):
        metrics.worst_group(logits, labels, None)


def test_roc_auc_with_ties():
    logits, _, _ = example()
    pair, labels = logits[:, :2].round(decimals=1), torch.arange(200) % 3 // 2
    theirs = roc_auc_score(labels, (pair[:, 1] - pair[:, 0]).double())
    assert metrics.roc_auc(pair, labels) == pytest.approx(100 * theirs)
    with pytest.raises(UserError, match="both classes"):
        metrics.roc_auc(pair, labels * 0)


def arrow(folder, name, columns, version="1.1.0"):
    """As the `datasets` library leaves it: a stream of record batches."""
    path = folder / f"nlphuji___{name}" / "TEST" / version / "0f3c"
    path.mkdir(parents=True)
    table = pa.table(columns)
    with pa.ipc.new_stream(str(path / f"{name}-test.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def datacomp(root):
    """Every task as download_evalsets.py leaves it, four to six images each."""
    for number, task in enumerate(task for task in DATACOMP if task.kind == "wds"):
        labels = [0, 1, 2, 3, 4, 5][: 4 + number % 3]
        arrays = [[index % 2, 2010, label] for index, label in enumerate(labels)] if task.groups else None
        write_wds(root / folder_names(task)[0], labels, NAMES, arrays=arrays, seed=number, per_tar=4)
    rng = np.random.default_rng(0)
    cache = root / "hf_cache"
    images = [{"bytes": noise(rng), "path": f"{i}.jpg"} for i in range(5)]
    captions = [[f"a picture {i} {n}" for n in range(5)] for i in range(5)]
    arrow(cache, "flickr_1k_test_image_text_retrieval", {"image": images, "caption": captions})
    stored = cache / "downloads" / "extracted" / "ab12"
    stored.mkdir(parents=True)
    for index, image in enumerate(images):
        (stored / f"{index}.jpg").write_bytes(image["bytes"])
    elsewhere = [{"bytes": None, "path": f"/gone/hf_cache/downloads/extracted/ab12/{i}.jpg"} for i in range(5)]
    arrow(cache, "mscoco_2014_5k_test_image_text_retrieval", {"image": elsewhere, "caption": captions})
    words = [f"word{i}" for i in range(14)]
    encoded = [{"bytes": noise(rng), "path": f"{word}.jpg"} for word in words]
    rows = {"candidates": [], "candidate_images": [], "cue": [], "associations": []}
    for number, size in enumerate((5, 10, 12)):
        own = rng.choice(14, size, replace=False).tolist()
        names = [words[i] for i in own]
        rows["candidates"].append(names)
        rows["candidate_images"].append([encoded[i] for i in own])
        rows["cue"].append(("Ocean", "tree", "sun")[number])
        # The last one is no candidate of this question, and does not count.
        rows["associations"].append([words[i] for i in own[:2]] + [word for word in words if word not in names][:1])
    arrow(cache, "winogavil", rows)


def command(run, root, output, suite="datacomp"):
    text = (
        f"--checkpoint {run} --suite {suite} --data-root {root} --output {output} --workers 0 --no-plots --device cpu"
    )
    return eval_zeroshot.main(text.split())


def test_datacomp_through_the_command(tmp_path, run, capsys):
    datacomp(tmp_path / "data")
    output = tmp_path / "out"
    assert command(run, tmp_path / "data", output) == 0
    printed = capsys.readouterr().out
    page = json.loads((output / "suite-datacomp.json").read_text())
    entries = json.loads((output / "results.json").read_text())["entries"]
    assert len(page["tasks"]) == len(entries) == 38 and page["missing"] == []
    values = {task["title"]: task["value"] for task in page["tasks"]}
    assert page["means"]["average"]["value"] == pytest.approx(np.mean(list(values.values())))
    assert page["means"]["ImageNet"]["value"] == values["ImageNet 1k"]
    primary = {entry["dataset"]: entry["numbers"] for entry in entries}
    flickr = primary["retrieval/flickr_1k_test_image_text_retrieval"]
    assert values["Flickr"] == (flickr["image_to_text_R@1"] + flickr["text_to_image_R@1"]) / 2
    assert flickr["captions"] == 25 and primary["misc/winogavil"]["questions"] == 3
    assert primary["misc/winogavil"]["images"] <= 14  # each image once
    assert "with 38 incomplete datasets: not comparable" in printed and "4 images where wds/" in printed


def test_a_partial_suite_is_marked(tmp_path, run, capsys):
    root = tmp_path / "data"
    write_wds(root / "wds_mnist", [0, 1, 2, 3], NAMES)
    write_wds(root / "wds" / "vtab" / "pets", [0, 1, 2, 3], NAMES)
    output = tmp_path / "out"
    assert command(run, root, output) == 1
    printed = capsys.readouterr().out
    assert "partial: 2 of 38 tasks" in printed and f"missing: {root / 'wds_cars_test'}" in printed
    assert json.loads((output / "suite-datacomp.json").read_text())["means"]["average"]["value"] is None


def test_mistakes(tmp_path, run):
    with pytest.raises(UserError, match="none of its 36 datasets is there"):
        command(run, tmp_path, tmp_path / "out", "vtab+")
    with pytest.raises(UserError, match="none of its 11 datasets is there; cifar10 needs"):
        open_suite("alip", tmp_path)
    with pytest.raises(UserError, match="leave out --task"):
        eval_zeroshot.main(f"--checkpoint {run} --suite alip --task probe --data-root {tmp_path}".split())
    for words in ("", "--suite alip --datasets cifar10"):
        with pytest.raises(UserError, match="name what to measure"):
            eval_zeroshot.main(["--checkpoint", str(run), *words.split()])
    folder = write_wds(tmp_path / "wds_fmow-no", [0, 1], NAMES).rename(tmp_path / "wds_wilds-fmow_test")
    with pytest.raises(UserError, match=r"lacks a \.npy"):
        open_suite("datacomp", tmp_path)
    (folder / "test" / "0.tar").unlink()
    with pytest.raises(UserError, match=r"0\.tar is missing"):
        open_suite("datacomp", tmp_path)


def test_broken_arrow_files(tmp_path):
    datacomp(tmp_path)
    file = next(tmp_path.glob("hf_cache/nlphuji___winogavil/**/*.arrow"))
    file.write_bytes(b"not arrow")
    with pytest.raises(UserError, match="is no Arrow file of the datasets library"):
        open_suite("datacomp", tmp_path)


def test_alip_suite_is_the_papers_eleven(tmp_path, monkeypatch, run):
    from tests.helpers import archives

    assert [task.key for task in SUITES["alip"]][-1] == "imagenet" and len(SUITES["alip"]) == 11
    archives.write("pets", tmp_path, monkeypatch)
    suite = open_suite("alip", tmp_path)
    assert [task.key for task, _ in suite.datasets] == ["pets"] and len(suite.missing) == 10
    assert suite.datasets[0][1].metric == "mean_per_class"


def test_retrieval_of_the_suite_from_our_own_layout(tmp_path):
    rows = [{"image": f"{i}.jpg", "caption": [f"a {i}"]} for i in range(3)]
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "coco_karpathy_test.json").write_text(json.dumps(rows))
    for i in range(3):
        write_noise(tmp_path / "coco" / f"{i}.jpg", i)
    suite = open_suite("datacomp", tmp_path)
    assert [(task.title, len(dataset.images)) for task, dataset in suite.datasets] == [("MSCOCO", 3)]


def test_cue():
    assert [cue_prompt(cue) for cue in ("Ocean", "tree", "umbrella")] == ["An ocean", "A tree", "An umbrella"]


def test_winogavil_of_the_cache(tmp_path):
    """The right images are the candidates that are associations, as DataComp's isin has it."""
    datacomp(tmp_path)
    opened = {task.key: dataset for task, dataset in open_suite("datacomp", tmp_path).datasets}["misc/winogavil"]
    candidates, right = (json.loads(text) for text in opened.content[-2:])
    assert [len(own) for own in candidates] == [5, 10, 12] and [len(own) for own in right] == [2, 2, 2]
    assert all({*answers} <= {*own} for own, answers in zip(candidates, right))
    assert opened.texts == ["An ocean", "A tree", "A sun"] and len(opened.images) == len(
        {image for own in candidates for image in own}
    )
    assert opened.images[3][0].size == (18, 20)
