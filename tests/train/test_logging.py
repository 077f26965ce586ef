"""The run log by itself: metrics.jsonl, console, TensorBoard, wandb, and a disk that is full."""

import json
import math
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alip.errors import UserError
from alip.train import logging
from alip.train.logging import RunLog
from tests.helpers.shards import ROOT

VALUES = {
    **{"loss": 2.5, "text_loss": 1.5, "caption_loss": 1.0, "sample_weight": 0.9, "text_weight": 0.5},
    **{"caption_weight": 0.25, "lr": 1e-3, "logit_scale": 14.3, "grad_norm": 0.75, "samples_per_s": 1234.5},
    **{"data_wait_s": 0.5, "history_tc": 0.3},
}


def position(step):
    return {"step": step, "epoch": step / 10, "samples": 8 * step}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder):
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_every_kind_of_line(tmp_path, capsys):
    log = RunLog(tmp_path, 40)
    log.train(position(5), VALUES, seconds_left=3725)
    log.evaluation(position(5), "retrieval", "coco", {"text_to_image_R@1": 12.345678, "protocol": "standard"})
    log.gates(position(10), {"auc_weight": 0.75, "scored_samples": 52})
    log.event(position(10), "nonfinite", steps=[7], message="warning: something")
    log.event(position(10), "silent")
    log.close()

    lines = lines_of(tmp_path)
    assert [line["kind"] for line in lines] == ["train", "eval", "gates", "event", "event"]
    assert all(line.pop("time") > 1.7e9 for line in lines)
    assert lines[0] == {"kind": "train", **position(5), **VALUES}
    assert lines[1] == {
        **{"kind": "eval", **position(5), "task": "retrieval", "dataset": "coco"},
        **{"text_to_image_R@1": 12.345678, "protocol": "standard"},
    }
    assert lines[2] == {"kind": "gates", **position(10), "auc_weight": 0.75, "scored_samples": 52}
    assert lines[3]["event"] == "nonfinite" and lines[3]["steps"] == [7]
    assert capsys.readouterr().out.splitlines() == [
        "step  5/40 epoch 0.50 loss 2.5000 (text 1.5000 caption 1.0000) weights 0.900 0.500 0.250 "
        "lr 1.00e-03 scale 14.30 grad 0.75 1234 samples/s wait 0.50 s left 1:02:05",
        "step 5 retrieval coco: text_to_image_R@1 12.35",
        "step 10 gates: auc_weight 0.75 scored_samples 52",
        "warning: something",
    ]
    found = scalars(tmp_path)
    assert found["train/loss"] == [(5, 2.5)] and found["gates/history_tc"] == [(5, pytest.approx(0.3))]
    assert found["speed/samples_per_s"] == [(5, 1234.5)] and found["gates/auc_weight"] == [(10, 0.75)]
    assert found["retrieval/coco/text_to_image_R@1"] == [(5, pytest.approx(12.345678))]


def test_utilisation_and_memory_are_shown_where_they_are_known(tmp_path, capsys):
    log = RunLog(tmp_path, 9, tensorboard=False)
    log.train(position(1), {**VALUES, "mfu": 0.4567, "gpu_memory_gib": 61.25}, 0.0)
    assert "wait 0.50 s mfu 45.7 % mem 61.2 GiB left 0:00:00" in capsys.readouterr().out
    assert not (tmp_path / "tensorboard").exists()


def test_histograms_of_a_step_that_was_not_finite(tmp_path):
    log = RunLog(tmp_path, 9)
    log.weights(1, {"sample_weight": torch.full((4,), math.nan), "text_weight": torch.tensor([0.5, math.nan])})
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["histograms"] == ["weights/text_weight"]
    assert board.Histograms("weights/text_weight")[0].histogram_value.num == 1


def test_numbers_that_json_lacks_are_null(tmp_path):
    RunLog(tmp_path, 9, tensorboard=False).train(position(1), {**VALUES, "loss": math.nan, "lr": math.inf}, 0.0)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert '"loss": null' in text and '"lr": null' in text and "NaN" not in text


def test_other_ranks_write_nothing(tmp_path, capsys):
    log = RunLog(tmp_path / "run", 9, enabled=False)
    log.advance()
    log.train(position(1), VALUES, 0.0)
    log.weights(1, {"sample_weight": torch.ones(3)})
    log.evaluation(position(1), "zeroshot", "pets", {"accuracy": 1.0})
    log.gates(position(1), {"auc_weight": 0.5})
    log.event(position(1), "started", message="hello")
    log.say("hello")
    log.close()
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


def test_a_resumed_run_drops_what_was_lost(tmp_path):
    log = RunLog(tmp_path, 9)
    for step in (1, 2, 3, 4):
        log.train(position(step), VALUES, 0.0)
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1%s}\n' % (b"0" * 400))
        file.write(b'7\nnull\n{"kind": "train"}\n\xff\xfe\n{"kind": "train", "step": 2, "ep')
    log = RunLog(tmp_path, 9, after_step=2)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    for step in (3, 4, 5):
        log.train(position(step), {**VALUES, "loss": 9.0}, 0.0)
    log.close()
    assert [(line["step"], line["loss"]) for line in lines_of(tmp_path)] == [(1, 2.5), (2, 2.5), (3, 9), (4, 9), (5, 9)]
    assert scalars(tmp_path)["train/loss"] == [(1, 2.5), (2, 2.5), (3, 9), (4, 9), (5, 9)]


def test_a_full_disk_is_one_warning(tmp_path, monkeypatch, capsys):
    log = RunLog(tmp_path, 9, tensorboard=False)
    append = logging._append

    def half(path, text):
        with path.open("a") as file:
            file.write(text[:20])
        raise OSError(28, "No space left on device")

    log.train(position(1), VALUES, 0.0)
    monkeypatch.setattr(logging, "_append", half)
    for step in (2, 3):
        log.train(position(step), VALUES, 0.0)
    monkeypatch.setattr(logging, "_append", append)
    log.train(position(4), VALUES, 0.0)
    printed = capsys.readouterr().out
    assert printed.count("could not be written, continuing without it") == 1 and "step 3/9" in printed
    whole = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["step"] for line in whole] == [1, 4]


def test_a_resume_on_a_full_disk_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 5}\n')

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logging, "atomic_write", full)
    with pytest.raises(UserError, match=r"metrics\.jsonl: could not be written"):
        RunLog(tmp_path, 9, after_step=2, tensorboard=False)


def test_a_run_outlives_the_reader_of_its_console(tmp_path):
    """As in `python train.py … | head -1`."""
    program = (
        "from pathlib import Path; from alip.train.logging import RunLog\n"
        f"log = RunLog(Path({str(tmp_path)!r}), 9, tensorboard=False)\n"
        "for step in range(2000):\n"
        "    log.event({'step': step}, 'note', message='x' * 99)\n"
        "print('and again')\n"
    )
    words = f"{sys.executable} -c {shlex.quote(program)} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "x" * 99 + "\n")
    assert (
        done.stderr == f"nobody reads the console any more; the run continues, and logs into {tmp_path}/metrics.jsonl\n"
    )
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2000


def test_wandb_gets_the_numbers(tmp_path, monkeypatch):
    logged, started = [], {}
    run = SimpleNamespace(
        id="7abc", log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append("end")
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: started.update(options) or run))
    log = RunLog(tmp_path / "b32", 9, tensorboard=False, wandb_project="alip", settings={"lr": 0.1})
    log.train(position(2), VALUES, 0.0)
    log.event(position(2), "started", message="text is no number")
    log.close()
    assert started["project"] == "alip" and started["name"] == "b32" and started["config"] == {"lr": 0.1}
    step, values = logged[0]
    assert step == 2 and values["train/loss"] == 2.5 and values["train/samples"] == 16
    assert logged[1] == (2, {"event/epoch": 0.2, "event/samples": 16}) and logged[-1] == "end"
    assert started["id"] is None
    log = RunLog(tmp_path / "b32", 9, after_step=2, tensorboard=False, wandb_project="alip")
    assert started["id"] == "7abc", "a resumed run continues"
    for dataset in ("one", "two"):
        log.evaluation(position(3), "retrieval", dataset, {"primary": 1.0})
    keys = [key for step, values in logged[3:] for key in values if key.endswith("primary")]
    assert keys == ["eval/retrieval/one/primary", "eval/retrieval/two/primary"]
    RunLog(tmp_path / "b32", 9, tensorboard=False, wandb_project="alip")
    assert started["id"] is None, "a run that begins again is another one"


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log = RunLog(tmp_path, 8, after_step=4, tensorboard=False)
    log.train(position(5), VALUES, 0.0)
    log.advance()
    log.say("a line above the bar")
    log.close()
    shown = capsys.readouterr()
    assert "5/8" in shown.err and "loss 2.5000" in shown.err and "a line above the bar\n" in shown.err
    assert shown.out == ""
