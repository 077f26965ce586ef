"""The two evaluations and the report, as a user types them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval_retrieval
import eval_zeroshot
from alip.errors import UserError
from alip.eval import report
from alip.eval.datasets import open_classification
from tests.helpers.pairs import write_classes, write_pairs

ROOT = Path(__file__).parents[2]


def entries(folder):
    return json.loads((folder / "results.json").read_text())["entries"]


def test_both_evaluations_and_the_report(run, tmp_path, capsys):
    captions = write_pairs(tmp_path / "pairs", alpha=True)
    classes = write_classes(tmp_path / "sorts")
    out = tmp_path / "out"
    flags = f"--output {out} --workers 2 --batch-size 5 --device cpu".split()
    assert eval_retrieval.main(["--checkpoint", str(run), "--dataset", str(captions), *flags]) == 0
    assert eval_zeroshot.main(["--checkpoint", str(run), "--datasets", str(classes), *flags]) == 0
    retrieval, zeroshot = entries(out)
    assert retrieval["task"] == "retrieval" and zeroshot["task"] == "zeroshot"
    assert retrieval["numbers"]["images"] == 23 and retrieval["numbers"]["captions"] > 23
    assert retrieval["weights_hash"] == zeroshot["weights_hash"] and len(retrieval["weights_hash"]) == 16
    assert retrieval["versions"]["torch"] and retrieval["protocol"] == "standard"
    for name in ("gallery-pairs", "retrieval-pairs", "confusion-sorts", "per-class-sorts", "zeroshot"):
        with Image.open(out / f"{name}.png") as plot:
            assert np.asarray(plot.convert("L")).std() > 5  # something is plotted
    assert f"{retrieval['numbers']['text_to_image_R@5']:.1f}" in (out / "report.md").read_text()

    # The same again replaces; another protocol is added.
    again = ["--checkpoint", str(run), "--dataset", str(captions), *flags, "--no-plots"]
    eval_retrieval.main(again)
    eval_retrieval.main([*again, "--protocol", "alip"])
    assert [(e["task"], e["protocol"]) for e in entries(out)] == [
        ("zeroshot", "standard"),
        ("retrieval", "standard"),
        ("retrieval", "alip"),
    ]
    assert entries(out)[1]["numbers"] == retrieval["numbers"]
    assert entries(out)[2]["numbers"] != retrieval["numbers"]  # the prefix

    capsys.readouterr()
    other = tmp_path / "other"
    shutil.copytree(out, other)
    assert report.main([str(out), str(other), "--output", str(tmp_path / "both")]) == 0
    page = capsys.readouterr().out
    assert "| out (standard)" in page and "| other (alip)" in page


def test_results_go_into_the_run(run, tmp_path):
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    captions = write_pairs(tmp_path / "pairs", images=4)
    eval_retrieval.main(f"--checkpoint {mine} --dataset {captions} --no-plots --workers 0 --device cpu".split())
    assert len(entries(mine / "results")) == 1


def test_unreadable_images_are_named_and_cost_the_exit_status(run, tmp_path, capsys):
    captions = write_pairs(tmp_path / "pairs", images=9)
    (tmp_path / "pairs" / "images" / "4.png").write_bytes(b"not an image")
    (tmp_path / "pairs" / "images" / "7.png").unlink()
    whole = (tmp_path / "pairs" / "images" / "2.png").read_bytes()
    (tmp_path / "pairs" / "images" / "2.png").write_bytes(whole[: len(whole) // 2])
    for workers in (0, 2):
        status = eval_retrieval.main(
            f"--checkpoint {run} --dataset {captions} --output {tmp_path / 'out'} --workers {workers} --device cpu "
            f"--batch-size 2 --cache {tmp_path / 'cache'}".split()
        )
        assert status == 1
        (entry,) = entries(tmp_path / "out")
        assert entry["numbers"]["unreadable"] == 3 and entry["numbers"]["images"] == 6
        assert [Path(line.split(": ")[0]).name for line in entry["unreadable"]] == ["2.png", "4.png", "7.png"]
        assert "3 images cannot be read" in capsys.readouterr().out


def test_all_unreadable_is_a_users_mistake(run, tmp_path):
    captions = write_pairs(tmp_path / "pairs", images=3)
    for number in range(3):
        (tmp_path / "pairs" / "images" / f"{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 3 images can be read; the first: .*0.png"):
        eval_retrieval.main(f"--checkpoint {run} --dataset {captions} --device cpu --workers 0".split())


def test_prompts_and_class_names_from_files(run, tmp_path):
    classes = write_classes(tmp_path / "sorts")
    names = {"sorts": [f"sort number {n}" for n in range(7)]}
    (tmp_path / "names.json").write_text(json.dumps(names))
    (tmp_path / "prompts.json").write_text(json.dumps({"sorts": ["a {}.", "one {}."]}))
    flags = f"--checkpoint {run} --datasets {classes} --output {tmp_path / 'out'} --workers 0 --device cpu --no-plots"
    given = ["--classnames", str(tmp_path / "names.json"), "--prompts", str(tmp_path / "prompts.json")]
    assert eval_zeroshot.main([*flags.split(), *given, "--protocol", "alip"]) == 0
    assert "primary_truncated" in entries(tmp_path / "out")[0]["numbers"]
    (tmp_path / "prompts.json").write_text(json.dumps({"sorts": ["a photo"]}))
    with pytest.raises(UserError, match="needs exactly one"):
        eval_zeroshot.main([*flags.split(), *given])
    (tmp_path / "names.json").write_text(json.dumps({"sorts": ["one"]}))
    with pytest.raises(UserError, match=r"7 class folders, but .* names 1"):
        eval_zeroshot.main([*flags.split(), *given[:2]])
    (tmp_path / "names.json").write_text(json.dumps({"other": ["one"]}))
    with pytest.raises(UserError, match="has no class names for sorts; it has: other"):
        eval_zeroshot.main([*flags.split(), *given[:2]])


def test_folders_and_lists_of_labels(tmp_path, capsys):
    """Names follow the folders' order; a list may rename the folders, or give another order."""
    classes = write_classes(tmp_path / "sorts", classes=3, images=8)
    (classes / "class1").rename(classes / "class_1-b")
    plain = open_classification(classes)
    assert plain.classnames == ["class0", "class2", "class 1 b"]
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"sorts": ["missile", "boat", "missile"]}))  # as ImageNet's list has it
    assert open_classification(classes, classnames=names).classnames == ["missile", "boat", "missile"]
    names.write_text(json.dumps({"sorts": ["class_1-b", "class2", "class0"]}))
    turned = open_classification(classes, classnames=names)
    assert [2 - label for label in turned.images.labels] == plain.images.labels

    (classes / "class0/also.jfif").write_bytes((classes / "class0/0.png").read_bytes())
    (classes / "class0/not.avif").write_bytes(b"")
    assert len(open_classification(classes).images) == len(plain.images) + 1
    assert "1 images of other formats are left out; the first: " in capsys.readouterr().out

    rows = [{"image": "class0/0.png", "label": "first_one"}, {"image": "class2/2.png", "label": "another"}]
    (classes / "classes.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    listed = open_classification(classes)
    assert listed.classnames == ["another", "first one"] and listed.images.labels == [1, 0]
    with pytest.raises(UserError, match=r"has 2 classes, but .* names 3, 'another' not among them"):
        open_classification(classes, classnames=names)
    (classes / "classes.jsonl").write_text('{"image": 3}')
    with pytest.raises(UserError, match="line 1: label missing"):
        open_classification(classes)
    with pytest.raises(UserError, match=r"no such zero-shot dataset, folder or table: cifar11"):
        open_classification("cifar11", tmp_path)


def ranks_run(world_size, arguments, cwd):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *launch, *arguments], check=True, cwd=cwd, env=environment, capture_output=True)


@pytest.mark.slow
def test_two_and_three_ranks_give_the_very_same_numbers(run, tmp_path):
    captions = write_pairs(tmp_path / "pairs", images=23)
    flags = ["--checkpoint", str(run), "--dataset", str(captions), "--batch-size", "4"]
    flags += ["--workers", "0", "--device", "cpu", "--no-plots"]
    eval_retrieval.main([*flags, "--output", str(tmp_path / "1")])
    for world_size in (2, 3):
        output = ["--output", str(tmp_path / str(world_size))]
        ranks_run(world_size, [str(ROOT / "eval_retrieval.py"), *flags, *output], tmp_path)
        (alone,), (together,) = entries(tmp_path / "1"), entries(tmp_path / str(world_size))
        assert together["numbers"] == alone["numbers"]


def script(name, tmp_path, **settings):
    environment = {**os.environ, "PYTHON": sys.executable, **settings}
    return subprocess.run(["bash", str(ROOT / name)], env=environment, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["run_retrieval.sh", "run_zeroshot.sh"])
def test_scripts_say_what_is_missing(name, tmp_path, run):
    if not (ROOT / "runs" / "quickstart").exists():
        found = script(name, tmp_path)
        assert found.returncode == 2 and "scripts/quickstart.sh" in found.stderr and found.stderr.count("\n") == 1
    found = script(name, tmp_path, CHECKPOINT=str(run), NPROC="8x")
    assert found.returncode == 2 and "not '8x'" in found.stderr and found.stderr.count("\n") == 1
    found = script(name, tmp_path, CHECKPOINT=str(run), DATASETS="nosuchset", DATA_ROOT=str(tmp_path))
    assert found.returncode == 2 and "nosuchset" in found.stderr and found.stderr.count("\n") == 1
