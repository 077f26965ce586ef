"""Training on several captions per image: exact in a resume and on any number of ranks, named in the recipe."""

from __future__ import annotations

import pytest

from alip.build.joined_texts import TextFiles
from alip.build.prepare import CaptionPolicy, Policy
from alip.errors import UserError
from alip.train import step
from tests.helpers.ranks import on_ranks
from tests.helpers.shards import build_shards, make_captioned_tars
from tests.helpers.train_runs import train_here, train_lines, train_on_rank


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """{captions per image: DIR/NAME}: the same 52 samples with all of their captions, and with the first alone."""
    folder = tmp_path_factory.mktemp("captions")
    tars, captions = make_captioned_tars(folder / "tars", 52, 4)
    for k in (1, 4):
        files = TextFiles(captions=(str(captions),))
        policy = Policy(captions=CaptionPolicy(k))
        build_shards(tars, folder / f"set{k}", texts=files, policy=policy, samples_per_shard=20)
    return {k: folder / f"set{k}" for k in (1, 4)}


@pytest.fixture
def on(flags):
    def flags_for(data, *more):
        return [*flags[:1], str(data), *flags[2:], *more]

    return flags_for


def test_first_is_what_one_caption_trains_and_random_is_not(sets, on, tmp_path):
    runs = {name: tmp_path / name for name in ("one", "first", "random")}
    assert train_here(*on(sets[1]), "--output", runs["one"]) == 0
    assert train_here(*on(sets[4], "--caption-sampling", "first"), "--output", runs["first"]) == 0
    assert train_here(*on(sets[4]), "--output", runs["random"]) == 0
    lines = {name: train_lines(run) for name, run in runs.items()}
    assert lines["first"] == lines["one"] and lines["random"] != lines["one"]


class Cut(BaseException):
    """Ends a run from inside, as a kill would."""


@pytest.mark.parametrize("sampling", ["random", "round-robin"])
def test_a_resumed_run_takes_the_same_captions(sets, on, tmp_path, monkeypatch, sampling):
    options = on(sets[4], "--caption-sampling", sampling, "--save-every", "3", "--reader", "dali")
    assert train_here(*options, "--output", tmp_path / "whole") == 0
    original, calls = step.TrainStep.__call__, []

    def cut(self, *arguments, **more):
        calls.append(1)
        if len(calls) > 8:
            raise Cut
        return original(self, *arguments, **more)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(step.TrainStep, "__call__", cut)
        train_here(*options, "--output", tmp_path / "cut")
    assert train_here(*options, "--output", tmp_path / "cut", "--resume", "auto") == 0
    assert train_lines(tmp_path / "cut") == train_lines(tmp_path / "whole")
    with pytest.raises(UserError, match=r"recipe caption_sampling: was '.*', now 'first'"):
        train_here(*options, "--caption-sampling", "first", "--output", tmp_path / "cut", "--resume", "auto")


def test_two_ranks_take_the_same_captions_as_one(sets, on, tmp_path):
    options = on(sets[4])
    options[options.index("--batch-size") + 1] = "4"
    assert on_ranks(2, train_on_rank, [*options, "--output", str(tmp_path / "two")]) == [0, 0]
    assert train_here(*on(sets[4]), "--output", tmp_path / "one") == 0
    for one, two in zip(train_lines(tmp_path / "one"), train_lines(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
