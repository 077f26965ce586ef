"""Runs cut off and resumed in this process: what follows must be what would have been, bit for bit."""

import json

import pytest
import torch

from alip.distributed import World
from alip.errors import UserError
from alip.train import step
from alip.train.older_runs import RENAMED
from alip.train.resume import differences
from alip.train.trainer import Trainer
from tests.helpers.ranks import on_ranks
from tests.helpers.train_runs import SAMPLES, events, train_here, train_lines, train_on_rank, weights_of

ALL_OPTIONS = (
    *("--ema", "0.9", "--mismatch-column", "is_mismatched", "--force-patch-dropout", "0.5"),
    *("--log-every", "2", "--save-every", "3", "--lr-scheduler", "cosine", "--history-init", "first-batch"),
    *("--rotation", "10", "--keep", "20"),
)


class Cut(BaseException):
    """Ends a run from inside, as a kill would: nothing of ours catches it."""


@pytest.fixture
def cut_at(monkeypatch):
    """cut_at(n): the run ends in the middle of its step number n, counted from 0."""
    original = step.TrainStep.__call__

    def install(number):
        calls = {"left": number}

        def wrapped(self, *arguments, **options):
            calls["left"] -= 1
            if calls["left"] < 0:
                raise Cut
            return original(self, *arguments, **options)

        monkeypatch.setattr(step.TrainStep, "__call__", wrapped)
        return monkeypatch

    return install


def gate_lines(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines if line["kind"] == "gates"]


def same_weights(a, b):
    ours, theirs = weights_of(a), weights_of(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("reader", ["torch", "dali"])
def test_cut_in_mid_epoch_resumes_bit_for_bit(flags, tmp_path, cut_at, reader):
    options = [*flags, *ALL_OPTIONS, "--reader", reader]
    assert train_here(*options, "--output", tmp_path / "whole") == 0
    with pytest.raises(Cut):
        cut_at(5)
        train_here(*options, "--output", tmp_path / "cut")
    cut_at(10_000)
    assert train_here(*options, "--output", tmp_path / "cut", "--resume", "auto") == 0
    assert events(tmp_path / "cut", "resumed")[0]["step"] == 3
    assert len(train_lines(tmp_path / "whole")) == 6
    assert train_lines(tmp_path / "cut") == train_lines(tmp_path / "whole")
    assert gate_lines(tmp_path / "cut") == gate_lines(tmp_path / "whole") != []
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("opt", ["timm/lamb", "timm/nadamw", "timm/sgd", "timm/adafactor", "timm/adan"])
def test_other_optimizers_resume_bit_for_bit(flags, tmp_path, cut_at, opt):
    options = [*flags, "--opt", opt, "--save-every", "3", "--log-every", "2", "--lr", "0.01"]
    assert train_here(*options, "--output", tmp_path / "whole") == 0
    with pytest.raises(Cut):
        cut_at(5)
        train_here(*options, "--output", tmp_path / "cut")
    cut_at(10_000)
    assert train_here(*options, "--output", tmp_path / "cut", "--resume", "latest") == 0
    assert train_lines(tmp_path / "cut") == train_lines(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")
    with pytest.raises(UserError, match=rf"recipe opt: was '{opt}', now 'adamw'"):
        train_here(*flags, "--lr", "0.01", "--output", tmp_path / "cut", "--resume", "latest")


def test_resume_of_a_finished_run_does_nothing_more(flags, tmp_path):
    train_here(*flags, "--output", tmp_path / "run")
    before = train_lines(tmp_path / "run")
    assert train_here(*flags, "--output", tmp_path / "run", "--resume", "auto") == 0
    assert train_lines(tmp_path / "run") == before


def test_unreadable_newest_checkpoint(flags, tmp_path, capsys):
    options = [*flags, "--output", tmp_path / "run", "--save-every", "2"]
    train_here(*options)
    before = train_lines(tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    assert train_here(*options, "--resume", "auto") == 0
    assert "skipped an unreadable checkpoint" in capsys.readouterr().out
    assert newest.with_suffix(".pt.set-aside").exists() and newest.exists()
    assert train_lines(tmp_path / "run") == before


def test_a_run_is_not_overwritten_by_accident(flags, tmp_path):
    train_here(*flags, "--steps", "1", "--output", tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run"):
        train_here(*flags, "--steps", "1", "--output", tmp_path / "run")


@pytest.mark.parametrize("resume", [[], ["--resume", "auto"]])
def test_a_kept_best_checkpoint_is_not_overwritten_by_a_new_run(flags, tmp_path, resume):
    """Whoever deletes the step files to save space keeps best.pt."""
    folder = tmp_path / "run" / "checkpoints"
    train_here(*flags, "--steps", "1", "--output", tmp_path / "run")
    next(folder.glob("step-*.pt")).rename(folder / "best.pt")
    with pytest.raises(UserError, match=r"holds a run's best\.pt.*--resume .*best\.pt"):
        train_here(*flags, "--steps", "1", "--output", tmp_path / "run", *resume)
    assert train_here(*flags, "--steps", "1", "--output", tmp_path / "run", "--resume", folder / "best.pt") == 0


@pytest.mark.parametrize("start", [[], ["--resume", "ANOTHER"]])
def test_a_job_that_its_launcher_starts_again_goes_on(flags, tmp_path, cut_at, monkeypatch, start):
    train_here(*flags, "--steps", "2", "--output", tmp_path / "other")
    first = [str(tmp_path / "other") if word == "ANOTHER" else word for word in start]
    options = [*flags, "--steps", "6", "--save-every", "1", "--output", tmp_path / "run", "--resume-force", *first]
    with pytest.raises(Cut):
        cut_at(4 if not start else 2)
        train_here(*options)
    cut_at(10_000)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train_here(*options) == 0
    assert events(tmp_path / "run", "resumed")[-1]["step"] == 4


@pytest.mark.parametrize(
    "change, named",
    [
        (["--lr", "0.5"], "recipe lr: was 0.001, now 0.5"),
        (["--no-text-weight"], "recipe no_text_weight: was False, now True"),
        (["--rotation", "20"], "recipe rotation: was 0.0, now 20.0"),
    ],
)
def test_another_recipe_is_refused_and_named(flags, tmp_path, change, named, capsys):
    options = [*flags, "--steps", "2", "--output", tmp_path / "run"]
    train_here(*options)
    with pytest.raises(UserError, match=named):
        train_here(*options, *change, "--resume", "auto")
    assert train_here(*options, *change, "--resume", "auto", "--resume-force") == 0
    assert named in capsys.readouterr().out


def test_other_data_and_model_are_named():
    saved = {"data": {"fingerprint": "a"}, "model": {"vision_cfg": {"width": 32}}, "recipe": {}}
    now = {"data": {"fingerprint": "b"}, "model": {"vision_cfg": {"width": 64}}, "recipe": {"crop": [1, 2]}}
    assert differences(saved, now, ("data", "model", "recipe")) == [
        "data fingerprint: was 'a', now 'b'",
        "model vision_cfg.width: was 32, now 64",
        "recipe crop: was not given, now [1, 2]",
    ]
    assert differences({"recipe": {"crop": (1, 2)}}, {"recipe": {"crop": [1, 2]}}, ("recipe",)) == []


def test_settings_of_an_earlier_version_are_known_by_their_old_names(flags, tmp_path, capsys):
    """A checkpoint that was written before the flags took open_clip's names."""
    options = [*flags, "--steps", "2", "--output", tmp_path / "run"]
    train_here(*options)
    path = max((tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    saved = torch.load(path, weights_only=True)
    new_to_old = {new: old for old, new in RENAMED.items()}
    for part in ("recipe", "numerics"):
        saved["fingerprint"][part] = {new_to_old.get(k, k): v for k, v in saved["fingerprint"][part].items()}
    assert {"momentum", "initial_similarity", "weight_decay"} <= saved["fingerprint"]["recipe"].keys()
    torch.save(saved, path)
    assert train_here(*options, "--resume", "auto") == 0
    assert events(tmp_path / "run", "resumed")[0]["notes"] == []
    with pytest.raises(UserError, match=r"recipe history_momentum: was 0\.99, now 0\.5"):
        train_here(*options, "--resume", "auto", "--history-momentum", "0.5")


def test_another_batch_size_continues_at_the_same_sample(flags, tmp_path, cut_at, capsys):
    seen = []
    original = Trainer._batches

    def recording(self):
        for micro_batches in original(self):
            seen.extend(index for batch in micro_batches for index in batch.index.tolist())
            yield micro_batches

    patch = cut_at(4)
    patch.setattr(Trainer, "_batches", recording)
    options = [*flags, "--epochs", "1", "--save-every", "1", "--output", tmp_path / "run"]
    with pytest.raises(Cut):
        train_here(*options)
    del seen[4 * 8 :]  # the batch that was cut off
    cut_at(10_000)
    too_large = ["--batch-size", "30", "--resume", tmp_path / "run", "--output", tmp_path / "other"]
    assert train_here(*options, *too_large) == 0
    assert "continue with epoch 1, as the last 20 samples of epoch 0 are no whole step" in capsys.readouterr().out
    assert train_here(*options, "--batch-size", "4", "--resume", "auto") == 0
    shown = capsys.readouterr().out
    assert "the batch was 8 and is now 4" in shown
    assert "resumed at step 4 of 9\n" in shown and "step 9/9 " in shown
    assert len(seen) == len(set(seen)) == SAMPLES  # the epoch's samples once each
    steps = [line["step"] for line in train_lines(tmp_path / "run")]
    assert steps == list(range(1, 4 + 5 + 1))  # steps never go back
    rates = [line["lr"] for line in train_lines(tmp_path / "run")]
    assert rates[-1] == pytest.approx(1e-3 / 25e4)  # and the schedule ends where it should


def train_on_rank_cut(world, options, number):
    calls = {"left": number}
    original = step.TrainStep.__call__

    def wrapped(self, *arguments, **others):
        calls["left"] -= 1
        if calls["left"] < 0:
            raise Cut
        return original(self, *arguments, **others)

    step.TrainStep.__call__ = wrapped  # in a process of its own
    try:
        return train_here(*options, world=world)
    except Cut:
        return "cut"


def test_two_ranks_cut_and_resumed_bit_for_bit(flags, tmp_path):
    options = [*flags, *ALL_OPTIONS, "--batch-size", "3", "--accum-freq", "2", "--epochs", "1"]
    whole, cut = [*options, "--output", tmp_path / "whole"], [*options, "--output", tmp_path / "cut"]
    assert on_ranks(2, train_on_rank, whole) == [0, 0]
    assert on_ranks(2, train_on_rank_cut, cut, 3) == ["cut", "cut"]
    assert on_ranks(2, train_on_rank, [*cut, "--resume", "auto"]) == [0, 0]
    assert events(tmp_path / "cut", "resumed")[0]["step"] == 3
    assert train_lines(tmp_path / "cut") == train_lines(tmp_path / "whole") != []
    assert gate_lines(tmp_path / "cut") == gate_lines(tmp_path / "whole") != []
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_another_number_of_ranks_continues_with_the_same_batches(flags, tmp_path, capsys):
    options = [*flags, "--epochs", "1", "--save-every", "2", "--output"]
    assert train_here(*options, tmp_path / "whole") == 0
    assert on_ranks(2, train_on_rank, [*options, tmp_path / "run", "--batch-size", "4", "--steps", "4"]) == [0, 0]
    saved = max((tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    assert train_here(*options, tmp_path / "one", "--resume", saved, "--resume-force", world=World()) == 0
    assert "another number of ranks" in capsys.readouterr().out
    losses = {line["step"]: line["loss"] for line in train_lines(tmp_path / "one")}
    assert list(losses) == [5, 6]
    # The first two ranks' schedule was a shorter one (--steps 4), so the weights differ a little; the batches do not.
    expected = {line["step"]: line["loss"] for line in train_lines(tmp_path / "whole")}
    assert all(abs(losses[s] - expected[s]) < 0.2 for s in losses)


@pytest.mark.parametrize("content", ["{", "[]", '{"starts": 3}', ""])
def test_a_damaged_run_json_is_noted_and_no_reason_not_to_resume(flags, tmp_path, content):
    run = tmp_path / "run"
    train_here(*flags, "--steps", "2", "--output", run)
    (run / "run.json").write_text(content)
    assert train_here(*flags, "--steps", "2", "--output", run, "--resume", "auto") == 0
    (start,) = json.loads((run / "run.json").read_text())["starts"]
    assert any("the earlier starts of this run are lost" in note for note in start["notes"])


def test_a_run_is_not_continued_by_another_one(flags, tmp_path):
    """The steps of both stood in one log, and the older one's checkpoints beside the new one's."""
    train_here(*flags, "--steps", "2", "--output", tmp_path / "run")
    train_here(*flags, "--steps", "1", "--output", tmp_path / "other")
    again = [*flags, "--steps", "2", "--output", tmp_path / "run", "--resume"]
    for theirs in (tmp_path / "other", tmp_path / "other" / "checkpoints" / "step-00000001.pt"):
        with pytest.raises(UserError, match=f"already holds another run than {theirs}: choose another --output"):
            train_here(*again, theirs)
    assert train_here(*again, tmp_path / "run" / "checkpoints") == 0
    # The same command again, as a job that is requeued gives it, continues what it began.
    begun = [*flags, "--output", tmp_path / "third", "--resume", tmp_path / "other", "--resume-force", "--steps"]
    assert train_here(*begun, "2") == train_here(*begun, "3") == 0
    assert [event["step"] for event in events(tmp_path / "third", "resumed")] == [1, 2]


def test_an_optimizer_that_keeps_a_type_of_tensors_is_resumed(flags, tmp_path, cut_at):
    options = [*flags, "--opt", "timm/adafactorbv", "--no-cycle-beta1", "--save-every", "2", "--steps", "4"]
    train_here(*options, "--output", tmp_path / "whole")
    with pytest.raises(Cut):
        cut_at(3)
        train_here(*options, "--output", tmp_path / "cut")
    cut_at(10_000)
    train_here(*options, "--output", tmp_path / "cut", "--resume", "auto")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
