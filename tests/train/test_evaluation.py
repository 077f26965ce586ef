"""Evaluation in training: what eval_retrieval.py reports for the same checkpoint, number for number."""

import importlib.util
import json
import random

import pytest
from PIL import Image

from alip.errors import UserError
from alip.model import precision
from tests.helpers.train_runs import ROOT, train_here

_spec = importlib.util.spec_from_file_location("eval_retrieval_entry", ROOT / "eval_retrieval.py")
eval_retrieval = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(eval_retrieval)


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
