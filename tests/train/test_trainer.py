"""Whole runs in this process: what they show, evaluate and survive, and how they fail."""

import json
import math
import os
import subprocess
import weakref

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alip.checkpoint import find_checkpoint, load_model
from alip.data.decoders import PixelFormat
from alip.data.loader import Loader, create_loader
from alip.data.shards import load_manifest
from alip.errors import UserError
from alip.train import logging, run_folder, step
from alip.train.arguments import parse_interval
from tests.helpers.train_runs import entry, events, train_here, train_lines


@pytest.fixture
def before_step(monkeypatch):
    """before_step(n, act): act(micro_batches) before the run's step number n (from 1)."""
    original = step.TrainStep.__call__
    actions, count = {}, {"steps": 0}

    def wrapped(self, micro_batches, *arguments, **options):
        count["steps"] += 1
        actions.get(count["steps"], lambda _: None)(micro_batches)
        return original(self, micro_batches, *arguments, **options)

    monkeypatch.setattr(step.TrainStep, "__call__", wrapped)
    return actions.__setitem__


def spoil(micro_batches):
    micro_batches[0].image[0, 0, 0, 0] = math.nan


def lines_of(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_a_line_has_all_that_is_promised(flags, tmp_path, capsys):
    train_here(*flags, "--steps", "4", "--output", tmp_path / "run", "--accum-freq", "2", "--batch-size", "4")
    line = lines_of(tmp_path / "run", "train")[-1]
    names = """step epoch samples loss text_loss caption_loss sample_weight text_weight caption_weight
        text_caption_similarity image_text_similarity image_caption_similarity history_tc history_xt history_xc
        lr logit_scale grad_norm samples_per_s model_tflops_per_s data_wait_s"""
    assert set(names.split()) <= set(line)
    assert (line["step"], line["samples"], line["epoch"]) == (4, 32, pytest.approx(4 / 6, abs=1e-3))
    assert line["loss"] == pytest.approx(line["text_loss"] + line["caption_loss"], rel=1e-6)
    printed = capsys.readouterr().out
    assert "4 steps of 8 (4 x 2 x 1 ranks), 6 an epoch" in printed
    assert "step 4/4" in printed and "samples/s" in printed
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"train/loss", "gates/history_tc", "speed/samples_per_s", "speed/model_tflops_per_s"} <= set(
        board.Tags()["scalars"]
    )
    assert {"weights/sample_weight", "weights/text_weight"} <= set(board.Tags()["histograms"])
    loss = board.Scalars("train/loss")
    assert [event.step for event in loss] == [1, 2, 3, 4] and loss[-1].value == pytest.approx(line["loss"])


def test_trains_on_synthetic_data_and_resumes(model_file, tmp_path):
    options = ["--dataset-type", "synthetic", "--train-num-samples", "20", "--model", model_file, "--device", "cpu"]
    options += ["--batch-size", "4", "--log-every", "1", "--precision", "fp32", "--epochs"]
    assert train_here(*options, "2", "--output", tmp_path / "whole") == 0
    lines = train_lines(tmp_path / "whole")
    assert len(lines) == 10 and all(line["loss"] > 0 for line in lines)
    assert train_here(*options, "2", "--output", tmp_path / "again") == 0
    assert train_lines(tmp_path / "again") == lines
    with pytest.raises(UserError, match="data samples: was 20, now 24"):
        train_here(*options, "2", "--output", tmp_path / "again", "--resume", "latest", "--train-num-samples", "24")


def test_reports_to_what_is_asked_for(flags, tmp_path):
    train_here(*flags, "--steps", "1", "--report-to", "none", "--output", tmp_path / "run")
    assert lines_of(tmp_path / "run", "train") and not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("reader", ["dali", "torch"])
def test_image_flags_reach_the_loader_and_the_model(flags, tmp_path, monkeypatch, reader):
    seen = []
    monkeypatch.setattr(entry, "create_loader", lambda *a, **k: seen.append(create_loader(*a, **k)) or seen[0])
    options = ["--force-image-size", "24", "--image-mean", "0.5", "--image-std", "0.2", "0.3", "0.4"]
    options += ["--image-interpolation", "bicubic", "--image-resize-mode", "squash", "--steps", "1"]
    assert train_here(*flags, *options, "--reader", reader, "--output", tmp_path / "run") == 0
    expected = PixelFormat(24, (0.5, 0.5, 0.5), (0.2, 0.3, 0.4), "bicubic")
    assert seen[0].form == seen[0].decoder.form == expected
    model = load_model(tmp_path / "run")
    found = model.config["preprocess_cfg"]
    assert (model.image_size, found["size"], found["mean"], found["std"]) == (24, [24, 24], [0.5] * 3, [0.2, 0.3, 0.4])
    assert (found["interpolation"], found["resize_mode"]) == ("bicubic", "squash")
    with pytest.raises(UserError, match="recipe image_interpolation: was 'bicubic', now not given"):
        train_here(*flags, *options[:-6], *options[-2:], "--output", tmp_path / "run", "--resume", "latest")


def test_checkpoint_is_a_model_for_others(flags, tmp_path):
    train_here(*flags, "--steps", "3", "--ema", "0.9", "--output", tmp_path / "run")
    found = torch.load(find_checkpoint(tmp_path / "run"), weights_only=True)
    for weights, key in (("model", "model"), ("ema", "ema")):
        model = load_model(tmp_path / "run", weights=weights)
        assert all(torch.equal(value, found[key][name]) for name, value in model.state_dict().items())
    assert not torch.equal(found["model"]["text_projection"], found["ema"]["text_projection"])


@pytest.fixture
def captions(tmp_path):
    """A retrieval dataset of four images."""
    lines = []
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{colour}.png")
        lines.append(json.dumps({"image": f"{colour}.png", "caption": [f"a {colour} square", f"number {i}"]}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "captions.jsonl"


def test_evaluation_leaves_training_as_it_was(flags, captions, tmp_path):
    options = [*flags, "--force-patch-dropout", "0.5", "--ema", "0.5", "--workers", "1"]
    train_here(*options, "--output", tmp_path / "without")
    train_here(*options, "--output", tmp_path / "with", "--eval-retrieval", captions, "--eval-every", "4steps")
    assert train_lines(tmp_path / "with") == train_lines(tmp_path / "without")
    lines = lines_of(tmp_path / "with", "eval")
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert all(0 <= line["image_to_text_R@1"] <= 100 and line["task"] == "retrieval" for line in lines)
    means = [(line["image_to_text_R@1"] + line["text_to_image_R@1"]) / 2 for line in lines]
    best = torch.load(tmp_path / "with" / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == lines[means.index(max(means))]["step"]
    assert best["best"]["mean"] == max(means)


def test_steps_that_are_not_finite_are_left_out_and_reported(flags, tmp_path, before_step, capsys):
    before_step(3, spoil)
    assert train_here(*flags, "--log-every", "4", "--output", tmp_path / "run") == 0
    assert events(tmp_path / "run", "nonfinite")[0]["steps"] == [3]
    assert "not finite at steps [3]" in capsys.readouterr().out
    assert all(line["loss"] is not None for line in train_lines(tmp_path / "run"))


def test_gives_up_with_a_checkpoint_and_the_ids(flags, tmp_path, before_step, capsys):
    seen = {}
    for number in range(3, 13):

        def act(micro_batches, number=number):
            seen[number] = micro_batches[0].index.tolist()
            spoil(micro_batches)

        before_step(number, act)
    options = [*flags, "--nonfinite-limit", "3", "--log-every", "1", "--output", tmp_path / "run"]
    assert train_here(*options) == 1
    content = json.loads((tmp_path / "run" / "nonfinite-step-00000005.json").read_text())
    assert content["steps"] == [{"step": n, "index": seen[n]} for n in (3, 4, 5)]
    assert "gave up at step 5" in capsys.readouterr().out
    saved = torch.load(find_checkpoint(tmp_path / "run"), weights_only=True)
    assert saved["step"] == 5 and all(torch.isfinite(value).all() for value in saved["model"].values())


def test_disk_that_fills_up_does_not_end_the_run(flags, tmp_path, before_step, monkeypatch, capsys):
    """The checkpoints' fsync and the log's writes fail from step 4 on, until step 9."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    fsync, append = os.fsync, logging._append

    def fill(_):
        os.fsync, logging._append = full, full

    def clear(_):
        os.fsync, logging._append = fsync, append

    before_step(4, fill)
    before_step(9, clear)
    try:
        assert train_here(*flags, "--save-every", "3", "--keep", "3", "--output", tmp_path / "run") == 0
    finally:
        clear(None)
    printed = capsys.readouterr().out
    assert "checkpoint of step 6 was not saved, continuing without it" in printed
    assert printed.count("the run's log could not be written") == 1
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-00000003.pt", "step-00000009.pt", "step-00000012.pt"]


def test_last_checkpoint_that_cannot_be_saved_is_no_success(flags, tmp_path, before_step, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    before_step(2, lambda _: monkeypatch.setattr(os, "fsync", full))
    assert train_here(*flags, "--steps", "2", "--output", tmp_path / "run") == 1
    assert "could not be saved" in capsys.readouterr().out


@pytest.fixture
def own_data(data, tmp_path):
    """A copy of the dataset that a test may spoil."""
    for path in data.parent.glob("tiny*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / "tiny"


@pytest.mark.parametrize("reader", ["torch", "dali"])
def test_record_that_breaks_in_mid_run(flags, own_data, tmp_path, before_step, reader):
    shard = load_manifest(own_data).path("tiny-00001.rec")

    def overwrite(_):
        with open(shard, "r+b") as file:
            file.write(b"\xff" * shard.stat().st_size)

    before_step(2, overwrite)
    with pytest.raises(UserError, match=r"record \d+ of .*tiny-00001\.rec"):
        train_here(*flags, "--train-data", own_data, "--epochs", "9", "--reader", reader, "--output", tmp_path / "run")


def test_shard_that_is_cut_in_mid_run(flags, own_data, tmp_path, before_step):
    shard = load_manifest(own_data).path("tiny-00002.rec")
    before_step(2, lambda _: shard.write_bytes(shard.read_bytes()[:64]))
    with pytest.raises(UserError, match=r"tiny-00002\.rec"):
        train_here(*flags, "--train-data", own_data, "--epochs", "9", "--output", tmp_path / "run")


def test_shard_that_is_gone_before_a_resume(flags, own_data, tmp_path):
    options = [*flags, "--train-data", own_data, "--output", tmp_path / "run"]
    train_here(*options, "--steps", "2")
    load_manifest(own_data).path("tiny-00000.rec").unlink()
    with pytest.raises(UserError, match=r"tiny-00000\.rec"):
        train_here(*options, "--steps", "2", "--resume", "auto")


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--batch-size", "1000"], "52"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--train-data", "no/such/data"], "no/such/data"),
        (["--save-every", "often"], "500steps"),
        (["--warmup", "-1"], "--warmup"),
        (["--mismatch-column", "no_such_column"], "no_such_column"),
        (["--eval-retrieval", "no-such-set"], "no-such-set"),
        (["--crop-area", "1", "0.5"], "--crop-area"),
        (["--resume", "no/such/checkpoint"], "no/such/checkpoint"),
    ],
)
def test_mistakes_are_named(flags, tmp_path, wrong, message):
    with pytest.raises(UserError, match=message.replace("/", ".")):
        train_here(*flags, "--output", tmp_path / "run", *wrong)


def test_intervals():
    assert str(parse_interval("2epochs", "steps")) == "2epochs"  # as run.json and model cards have it
    assert parse_interval("500", "steps") == parse_interval("500steps", "epochs")
    every = parse_interval("2epochs", "steps")
    assert [every.due(10, epoch, True) for epoch in (1, 2, 3, 4)] == [False, True, False, True]
    assert not every.due(10, 2, False)
    assert not parse_interval("0", "steps").due(0, 1, True)


def test_the_revision_is_that_of_this_code_and_is_read_without_a_lock(tmp_path, monkeypatch):
    """Not that of a project that this is installed in; and a git that is killed leaves the user's index unlocked."""
    words, run, file = [], subprocess.run, tmp_path / "installed.py"
    file.write_text("")
    run(["git", "init", "-q", tmp_path], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a"]
    run(["git", "-C", tmp_path, *who, "commit", "-q", "--allow-empty", "-m", "another project"], check=True)
    monkeypatch.setattr(run_folder, "__file__", str(file))
    monkeypatch.setattr(subprocess, "run", lambda line, **more: words.append(line) or run(line, **more))
    assert run_folder.git_revision() is None
    run(["git", "-C", tmp_path, "add", "installed.py"], check=True)
    assert run_folder.git_revision().endswith("+changes")
    assert {line[:2] for line in words} == {("git", "--no-optional-locks")}


def test_only_one_steps_images_are_held(flags, tmp_path, monkeypatch):
    """While a step's batches are taken, those of the step before are gone: `--batch-size auto` counts one step's."""
    original, earlier, alive = Loader.epoch, [], []

    def watched(self, *arguments, **options):
        for batch in original(self, *arguments, **options):
            alive.append(sum(image() is not None for image in earlier))
            earlier.append(weakref.ref(batch.image))
            yield batch

    monkeypatch.setattr(Loader, "epoch", watched)
    train_here(*flags, "--steps", "3", "--batch-size", "4", "--accum-freq", "2", "--output", tmp_path / "run")
    assert alive == [0, 1] * 3
