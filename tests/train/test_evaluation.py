"""Evaluation in training: what eval_retrieval.py reports for the same checkpoint, number for number."""

import importlib.util
import json
import random
import shutil

import pytest
import torch
from PIL import Image

from alip.errors import UserError
from alip.model import precision
from alip.train import checkpoints
from alip.train.evaluation import EvaluationTime
from tests.helpers.train_runs import ROOT, train_here
from tests.helpers.wds import write_wds


def entry_of(name):
    spec = importlib.util.spec_from_file_location(f"{name}_entry", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


eval_retrieval, eval_zeroshot = entry_of("eval_retrieval"), entry_of("eval_zeroshot")


@pytest.fixture
def captions(tmp_path):
    """A retrieval set of 40 plain images with two captions each."""
    sample, lines = random.Random(3), []
    for i in range(40):
        colour = tuple(sample.randrange(256) for _ in range(3))
        Image.new("RGB", (40, 36), colour).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": [f"colour {sum(colour)}", f"number {i}"]}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "captions.jsonl"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_equals_the_evaluation_of_the_checkpoint(flags, captions, tmp_path, monkeypatch, has_bf16):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    run = tmp_path / "run"
    options = [*flags, "--precision", "auto", "--epochs", "1", "--lr", "1e-2", "--output", run]
    assert train_here(*options, "--eval-retrieval", captions) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    in_training = [line for line in lines if line["kind"] == "eval"][-1]

    command = ["--checkpoint", str(run), "--dataset", str(captions), "--device", "cpu", "--workers", "1"]
    assert eval_retrieval.main([*command, "--output", str(tmp_path / "results")]) == 0
    (entry,) = json.loads((tmp_path / "results" / "results.json").read_text())["entries"]
    numbers = {k: v for k, v in entry["numbers"].items() if isinstance(v, int | float)}
    assert entry["precision"] == ("amp_bf16" if has_bf16 else "fp32")
    assert len(numbers) >= 6
    assert {name: in_training[name] for name in numbers} == numbers


def test_imagenet_validation_folder(flags, tmp_path):
    from timm.data import ImageNetInfo

    folder = tmp_path / "validation"
    for number, synset in enumerate(ImageNetInfo().label_names()):
        (folder / synset).mkdir(parents=True)
        if number % 50:  # a class without an image would be an incomplete dataset
            Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(folder / synset / "0.png")
    options = [*flags, "--steps", "1", "--eval-batch-size", "512", "--imagenet-val", folder]
    with pytest.raises(UserError, match="n01440764"):
        train_here(*options, "--output", tmp_path / "run")
    for synset in ImageNetInfo().label_names()[::50]:
        Image.new("RGB", (8, 8)).save(folder / synset / "0.png")
    assert train_here(*options, "--output", tmp_path / "run") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if line["kind"] == "eval")
    assert (line["task"], line["images"]) == ("zeroshot", 1000) and 0 <= line["top1"] <= 100
    with pytest.raises(UserError, match="no such folder"):
        train_here(*flags, "--imagenet-val", tmp_path / "nowhere", "--output", tmp_path / "other")


def lines_of(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_classification_and_probes_equal_the_command(flags, tmp_path):
    """Zero-shot, linear probe and few-shot probes, number for number; and what they cost, in one line."""
    sample = random.Random(4)
    for part in ("train", "test"):
        for label in range(3):
            folder = tmp_path / "colours" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(18):
                colour = tuple(sample.randrange(60) + 90 * (i == label) for i in range(3))
                Image.new("RGB", (20, 20), colour).save(folder / f"{number}.png")
    run, folder = tmp_path / "run", str(tmp_path / "colours")
    options = [*flags, "--precision", "fp32", "--epochs", "1", "--lr", "1e-2", "--output", run]
    evaluations = ["--eval-zeroshot", folder, "--eval-probe", folder, "--eval-few-shot", folder]
    assert train_here(*options, *evaluations) == 0
    found = {line["task"]: line for line in lines_of(run, "eval")}

    command = f"--checkpoint {run} --datasets {folder} --device cpu --workers 1 --precision fp32 --no-plots"
    flags_of_probes = "--task all --shots 1 4 16"
    assert eval_zeroshot.main([*command.split(), *flags_of_probes.split(), "--output", str(tmp_path / "out")]) == 0
    for entry in json.loads((tmp_path / "out" / "results.json").read_text())["entries"]:
        prefix = f"{entry['shots']}_shot_" if entry["task"] == "few-shot" else ""
        own = found[entry["task"]]
        assert {name: own[prefix + name] for name in entry["numbers"]} == entry["numbers"]

    (cost,) = (line for line in lines_of(run, "event") if line["event"] == "evaluation-time")
    assert set(cost["seconds"]) == {"zeroshot/colours", "probe/colours", "few-shot/colours"}
    assert 0 < cost["fraction"] < 1 and "every 1 epoch" in cost["message"] and "% of the run's time" in cost["message"]
    with pytest.raises(UserError, match="no training images"):
        train_here(*flags, "--eval-probe", f"{folder}/test", "--output", tmp_path / "other")


def test_two_evaluations_of_one_name_are_refused(flags, captions, tmp_path):
    """Their lines could not be told apart, and one's numbers were logged as the other's."""
    other = tmp_path / "other" / captions.parent.name
    shutil.copytree(captions.parent, other)
    with pytest.raises(UserError, match="two evaluations are called retrieval/"):
        train_here(*flags, "--eval-retrieval", captions, other, "--output", tmp_path / "run")


def test_the_best_checkpoint_is_that_of_the_evaluations_of_now(flags, captions, tmp_path):
    """After a resume with other evaluations a mean over others counts for nothing."""
    shutil.copytree(captions.parent, tmp_path / "other")
    options = [*flags, "--precision", "fp32", "--ema", "0.5", "--output", tmp_path / "run"]
    assert train_here(*options, "--epochs", "1", "--eval-retrieval", captions) == 0
    (newest,) = (tmp_path / "run" / "checkpoints").glob("step-*.pt")
    saved = torch.load(newest, weights_only=True)
    saved["best"] = {name: 1e6 if name != "step" else value for name, value in saved["best"].items()}
    torch.save(saved, newest)
    again = ["--epochs", "2", "--resume", "auto", "--resume-force", "--eval-retrieval", tmp_path / "other"]
    assert train_here(*options, *again) == 0
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    assert "retrieval/other" in best["best"] and best["step"] > newest_step(newest)
    assert {line["weights"] for line in lines_of(tmp_path / "run", "eval")} == {"ema"}


def newest_step(path):
    return int(path.stem.removeprefix("step-"))


def test_costly_evaluations_are_a_warning():
    cheap = EvaluationTime({"zeroshot/a": 2.0, "retrieval/b": 3.0}, 95.0, "every 2 epochs")
    assert cheap.fraction == pytest.approx(0.05)
    assert cheap.line() == (
        "evaluation took 5.0 s (retrieval/b 3.0, zeroshot/a 2.0); every 2 epochs, which is 95 s of training: "
        "5.0 % of the run's time"
    )
    many = EvaluationTime({f"zeroshot/{i}": 10.0 for i in range(9)}, 100.0, "at the end")
    assert many.line().startswith("warning: evaluation took 90.0 s") and "and 4 more" in many.line()


def test_a_suite_equals_the_command(flags, tmp_path):
    """The tasks that are there, with the suite's own metrics."""
    names = [f"thing {number}" for number in range(7)]
    write_wds(tmp_path / "data" / "wds_vtab-pets_test", [number % 7 for number in range(21)], names)
    write_wds(tmp_path / "data" / "wds_vtab-svhn_test", [number % 7 for number in range(21)], names, seed=1)
    run = tmp_path / "run"
    options = [*flags, "--precision", "fp32", "--epochs", "1", "--output", run, "--data-root", tmp_path / "data"]
    assert train_here(*options, "--eval-suite", "vtab+") == 0
    command = f"--checkpoint {run} --suite vtab+ --data-root {tmp_path / 'data'} --device cpu --workers 1 --no-plots"
    assert eval_zeroshot.main([*command.split(), "--precision", "fp32", "--output", str(tmp_path / "out")]) == 1
    entries = json.loads((tmp_path / "out" / "results.json").read_text())["entries"]
    found = {line["dataset"]: line for line in lines_of(run, "eval")}
    assert set(found) == {entry["dataset"] for entry in entries} and len(entries) == 2
    for entry in entries:
        assert {name: found[entry["dataset"]][name] for name in entry["numbers"]} == entry["numbers"]
    with pytest.raises(UserError, match=r"no such suite; there are .*datacomp"):
        train_here(*flags, "--eval-suite", "vtab", "--output", tmp_path / "other")


class Cut(BaseException):
    """Ends a run from inside, as a kill would."""


@pytest.mark.parametrize("lost", ["epoch-0001.pt", "best.pt"])
def test_a_kill_before_a_checkpoint_has_its_further_names(flags, captions, tmp_path, monkeypatch, lost):
    options = [
        *flags,
        "--epochs",
        "1",
        "--keep-epochs",
        "1",
        "--eval-retrieval",
        captions,
        "--output",
        tmp_path / "run",
    ]
    real = checkpoints._also_named

    def named(path, name):
        if name.name == lost:
            raise Cut
        real(path, name)

    monkeypatch.setattr(checkpoints, "_also_named", named)
    with pytest.raises(Cut):
        train_here(*options)
    folder = tmp_path / "run" / "checkpoints"
    assert not (folder / lost).exists()
    monkeypatch.setattr(checkpoints, "_also_named", real)
    train_here(*options, "--resume", "auto")
    newest = max(folder.glob("step-*.pt"))
    assert all((folder / name).samefile(newest) for name in ("epoch-0001.pt", "best.pt"))
