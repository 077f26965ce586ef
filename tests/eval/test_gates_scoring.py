"""Scoring a dataset: against one sample at a time, on one rank as on several, by the run's own recipe."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from alip.build.images import decode_image
from alip.build.joined_texts import TextFiles
from alip.build.prepare import CaptionPolicy, Policy
from alip.checkpoint import atomic_save
from alip.data.recordio import unpack
from alip.data.score_table import SCORES, ScoreTable
from alip.data.shards import load_manifest, read_texts
from alip.distributed import World
from alip.errors import UserError
from alip.eval.gates import on_cluster
from alip.eval.gates.page_data import collect
from alip.eval.gates.run_checkpoints import find_checkpoints, open_scorer
from alip.eval.gates.scoring import score_dataset
from alip.model import create_model
from alip.tokens import tokenize, unpack_label
from tests.eval.conftest import TINY
from tests.helpers.engines import InTurn
from tests.helpers.ranks import on_ranks
from tests.helpers.shards import build_shards, make_captioned_tars, make_tars

CPU = torch.device("cpu")
HISTORY = [0.85, 0.15, 0.24]


def save_checkpoint(path, seed=0, step=3, recipe=None, key="fingerprint", history=HISTORY):
    torch.manual_seed(seed)
    model = create_model({"model_cfg": TINY})
    content = {"format": "alip-checkpoint", "version": 1, "model": model.state_dict(), "model_config": model.config}
    content |= {"ema": None, "step": step, "samples": 9 * step, "loss": {"history": torch.tensor(history)}}
    if recipe is not None:
        content[key] = {"recipe": recipe}
    atomic_save(content, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    recipe = {"gamma_sample": 3.0, "gamma_pair": 1.5, "lr": 1e-3, "no_sample_weight": False}
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints/step-00000003.pt", recipe=recipe)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    make_tars(folder / "tars", 53)
    build_shards(folder / "tars", folder / "few", samples_per_shard=20)
    return folder / "few"


def score(checkpoint, data, output, world=None, overrides=None, **options):
    scorers = [open_scorer(path, overrides or {}, CPU) for path in np.atleast_1d(checkpoint).tolist()]
    score_dataset(scorers, load_manifest(data), output, world or World(), quiet=True, batch_size=8, **options)
    return pq.read_table(output)


def score_on_rank(world, checkpoint, data, output):
    score(checkpoint, data, output, world, columns={"is_mismatched": "odd"})


def slowly(checkpoint, data, gamma_sample, gamma_pair):
    """One sample at a time, by the paper's formulas."""
    content = torch.load(checkpoint, weights_only=True)
    model = create_model({"model_cfg": TINY}).eval()
    model.load_state_dict(content["model"])
    manifest = load_manifest(data)
    mean, std = (torch.tensor(model.config["preprocess_cfg"][name]).view(3, 1, 1) for name in ("mean", "std"))
    for index in range(manifest.samples):
        shard, number = manifest.locate(index)
        with manifest.open_shard(shard) as reader:
            label, encoded = unpack(reader[number])
        image = decode_image(encoded)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BILINEAR)
        pixels = (torch.tensor(np.asarray(image)).permute(2, 0, 1).float() / 255 - mean) / std
        text, caption = (torch.tensor(tokens)[None] for tokens in unpack_label(label))
        with torch.inference_mode():
            x, t, c, _ = model(pixels[None], text, caption)
        S_tc, S_xt, S_xc = (float((a * b).sum()) for a, b in ((t, c), (x, t), (x, c)))
        H_tc, H_xt, H_xc = HISTORY
        W_s = np.exp((S_tc - H_tc) * gamma_sample) if S_tc <= H_tc else 1.0
        W_t, W_c = (np.exp((S_xt - H_xt) * gamma_pair), np.exp((S_xc - H_xc) * gamma_pair)) if W_s < 1 else (1, 1)
        yield [S_tc, S_xt, S_xc, W_s, W_t, W_c, W_s * W_t, W_s * W_c]


def test_scores_equal_one_sample_at_a_time(checkpoint, few, tmp_path):
    table = score(checkpoint, few, tmp_path / "gates.parquet", columns={"is_mismatched": "odd"})
    expected = np.array(list(slowly(checkpoint, few, 3.0, 1.5)))
    assert 0.2 < (expected[:, 3] < 1).mean() < 1, "some samples are gated, by this test's history"
    found = np.stack([table[name].to_numpy() for name in SCORES], axis=1)
    # Resizing differs between decoders by a few levels of 255.
    np.testing.assert_allclose(found[:, 0], expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=0.03)
    rows = list(read_texts(load_manifest(few)))
    for name in ("key", "text", "caption"):
        assert table[name].to_pylist() == [row[name] for row in rows]
    assert table["index"].to_pylist() == list(range(53)) and table["record"].to_pylist()[19:22] == [19, 0, 1]
    assert table["shard"].to_pylist()[20] == "few-00001.rec"
    assert table["is_mismatched"].to_pylist() == [bool(i % 2) for i in range(53)]
    with ScoreTable(tmp_path / "gates.parquet") as opened:
        opened.check_data(load_manifest(few))
        assert opened.metadata["checkpoints"][0]["recipe"]["gamma_sample"] == 3.0
        assert opened.metadata["checkpoints"][0]["step"] == 3
        low, high = opened.value_range("sample_weight")
        assert (low, high) == (found[:, 3].min(), found[:, 3].max())


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_table_is_the_same_bytes_on_any_number_of_ranks(checkpoint, few, tmp_path, ranks):
    score(checkpoint, few, tmp_path / "one.parquet", columns={"is_mismatched": "odd"})
    on_ranks(ranks, score_on_rank, checkpoint, few, tmp_path / "many.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2, "no rank's part is left"


def test_more_ranks_than_batches(checkpoint, few, tmp_path):
    make_tars(tmp_path / "tars", 9)
    build_shards(tmp_path / "tars", tmp_path / "nine")
    on_ranks(3, score_on_rank, checkpoint, tmp_path / "nine", tmp_path / "many.parquet")  # 2 batches of 8
    assert pq.read_table(tmp_path / "many.parquet")["index"].to_pylist() == list(range(9))


def test_several_checkpoints_are_averaged(few, tmp_path):
    recipe = {"gamma_sample": 2.0, "gamma_pair": 2.0}
    paths = [save_checkpoint(tmp_path / f"{seed}.pt", seed=seed, recipe=recipe) for seed in (1, 2)]
    one, two = (score(path, few, tmp_path / "one.parquet") for path in paths)
    both = score(paths, few, tmp_path / "both.parquet")
    for name in SCORES:
        expected = (one[name].to_numpy().astype(float) + two[name].to_numpy()) / 2
        np.testing.assert_allclose(both[name].to_numpy(), expected, atol=1e-6)


def test_recipe_is_the_runs_own_unless_overridden(tmp_path):
    recipe = {"gamma_sample": 2.5, "gamma_pair": 0.5, "no_text_weight": True}
    for key in ("fingerprint", "identity"):  # the older name is still read
        path = save_checkpoint(tmp_path / f"{key}.pt", recipe=recipe, key=key)
        found = open_scorer(path, {"gamma_pair": None}, CPU).recipe
        assert (found.gamma_sample, found.gamma_pair) == (2.5, 0.5)
        assert (found.use_sample_weight, found.use_text_weight, found.use_caption_weight) == (True, False, True)
        changed = open_scorer(path, {"gamma_pair": 4.0, "use_text_weight": True, "use_sample_weight": None}, CPU)
        assert changed.recipe.gamma_pair == 4.0 and changed.recipe.use_text_weight
        assert changed.source["recipe"]["gamma_pair"] == 4.0, "what is used is what is recorded"


def test_a_run_of_plain_clip_has_no_weights_unless_asked_for(tmp_path):
    recipe = {"gamma_sample": 2.0, "gamma_pair": 2.0, "objective": "clip-text"}
    path = save_checkpoint(tmp_path / "clip.pt", recipe=recipe)
    found = open_scorer(path, {}, CPU).recipe
    assert not (found.use_sample_weight or found.use_text_weight or found.use_caption_weight)
    assert open_scorer(path, {"use_sample_weight": True}, CPU).recipe.use_sample_weight


def test_a_weight_that_was_switched_off_is_one(few, tmp_path):
    recipe = {"gamma_sample": 2.0, "gamma_pair": 2.0, "no_text_weight": True}
    table = score(save_checkpoint(tmp_path / "c.pt", recipe=recipe), few, tmp_path / "gates.parquet")
    assert set(table["text_weight"].to_pylist()) == {1.0} and len(set(table["caption_weight"].to_pylist())) > 9
    assert table["sample_text_weight"] == table["sample_weight"]


def test_checkpoints_that_cannot_be_scored_with(tmp_path, run):
    with pytest.raises(UserError, match="holds no gate history"):
        open_scorer(run / "checkpoints/step-00000003.pt", {}, CPU)
    with pytest.raises(UserError, match="give --gamma-sample and --gamma-pair"):
        open_scorer(save_checkpoint(tmp_path / "a.pt"), {}, CPU)
    assert open_scorer(tmp_path / "a.pt", {"gamma_sample": 1.0, "gamma_pair": 1.0}, CPU).recipe.gamma_pair == 1.0
    with pytest.raises(UserError, match="not three numbers"):
        open_scorer(save_checkpoint(tmp_path / "b.pt", history=[float("nan")] * 3), {}, CPU)


def test_which_checkpoints_a_run_stands_for(tmp_path):
    folder = tmp_path / "run/checkpoints"
    for step in (5, 10, 15):
        save_checkpoint(folder / f"step-{step:08d}.pt", step=step)
    (folder / "epoch-0002.pt").hardlink_to(folder / "step-00000010.pt")
    save_checkpoint(folder / "epoch-0000.pt", step=2)

    def steps(run, count):
        return [torch.load(path, weights_only=True)["step"] for path in find_checkpoints(run, count)]

    assert steps(tmp_path / "run", 8) == [2, 5, 10, 15], "each step once, whatever its names"
    assert steps(tmp_path / "run", 3) == [2, 5, 15] and steps(tmp_path / "run", 2) == [2, 15]
    assert steps(tmp_path / "run", 1) == [15]
    assert find_checkpoints(folder / "step-00000005.pt", 8) == [folder / "step-00000005.pt"]


def test_released_files_give_the_texts_of_their_tokens(checkpoint, few, tmp_path):
    manifest = load_manifest(few)
    for shard in manifest.shards:
        for name in (shard.rec, shard.idx):
            (tmp_path / name).write_bytes(manifest.path(name).read_bytes())
    table = score(checkpoint, tmp_path, tmp_path / "out/gates.parquet")
    assert table["text"][21].as_py() == "raw text number 2 1" or table["text"][21].as_py() == "raw text number 21"
    assert (tokenize([table["text"][21].as_py()]) == tokenize(["raw text number 21"])).all()
    assert table["key"][21].as_py() == "few-00001.rec:1"
    with pytest.raises(UserError, match="no sidecars"):
        score(checkpoint, tmp_path, tmp_path / "out/gates.parquet", columns={"is_mismatched": "odd"})


def test_labels_that_are_not_there_are_named(checkpoint, few, tmp_path):
    with pytest.raises(UserError, match="no true or false in 'none'"):
        score(checkpoint, few, tmp_path / "gates.parquet", columns={"is_mismatched": "none"})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Shards of 30 samples with 1 to 4 captions each, and of the same samples with caption k of each, if it has one."""
    folder = tmp_path_factory.mktemp("captioned")
    tars, captions = make_captioned_tars(folder / "tars", 30, 4)
    files = TextFiles(captions=(str(captions),))
    build_shards(tars, folder / "all", texts=files, policy=Policy(captions=CaptionPolicy(4)))
    entries = [json.loads(line) for line in captions.read_text().splitlines()]
    for k in range(4):
        lines = [json.dumps({"key": one["key"], "caption": (one["captions"] * 4)[k]}) + "\n" for one in entries]
        (folder / f"{k}.jsonl").write_text("".join(lines))
        build_shards(tars, folder / f"only{k}", texts=TextFiles(captions=(str(folder / f"{k}.jsonl"),)))
    return folder


def test_each_caption_has_the_row_that_it_has_as_the_only_one(checkpoint, captioned, tmp_path):
    table = score(checkpoint, captioned / "all", tmp_path / "all.parquet", columns={"is_mismatched": "odd"})
    alone = [score(checkpoint, captioned / f"only{k}", tmp_path / f"{k}.parquet").to_pylist() for k in range(4)]
    rows = table.to_pylist()
    assert len(rows) == sum(1 + i % 4 for i in range(30)) and list(rows[0])[4] == "caption_index"
    assert [(row["index"], row["caption_index"]) for row in rows] == [
        (i, k) for i in range(30) for k in range(1 + i % 4)
    ]
    for row in rows:
        other = alone[row["caption_index"]][row["index"]]
        assert (row["caption"], row["text"], row["key"]) == (other["caption"], other["text"], other["key"])
        assert row["is_mismatched"] == bool(row["index"] % 2)
        np.testing.assert_allclose([row[name] for name in SCORES], [other[name] for name in SCORES], atol=1e-5)
    manifest = load_manifest(captioned / "all")
    with ScoreTable(tmp_path / "all.parquet") as opened:
        opened.check_data(manifest)
        page = collect(opened, manifest, random_samples=20, extremes=2)
        assert len(page["rows"]["image"]) == len(page["rows"]["index"]) < len(rows) and all(page["rows"]["image"])
    on_ranks(2, score_on_rank, checkpoint, captioned / "all", tmp_path / "ranks.parquet")
    assert pq.read_table(tmp_path / "ranks.parquet").equals(table)


def test_by_pieces_it_is_the_same_table(checkpoint, few, tmp_path, monkeypatch):
    """Whoever does them, whoever dies: what is done is not done again, unless the checkpoints are others."""
    monkeypatch.setattr(on_cluster, "SAMPLES_PER_PIECE", 16)
    threads = torch.get_num_threads()
    columns = {"is_mismatched": "odd"}

    def by_pieces(engine, checkpoints):
        options = {"columns": columns, "batch_size": 8, "device": "cpu", "quiet": True}
        on_cluster.score_on_cluster(engine, checkpoints, {}, str(few), tmp_path / "b.parquet", **options)

    try:
        torch.set_num_threads(1)
        table = score(checkpoint, few, tmp_path / "a.parquet", columns=columns)
        with pytest.raises(KeyboardInterrupt):
            by_pieces(InTurn(lambda name, piece: piece[0] == 1), [checkpoint])
        by_pieces(second := InTurn(), [checkpoint])
        assert [number for _, number in second.calls] == [1, 0]
        assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes() and table.num_rows == 53
        assert not (tmp_path / "b.parquet.pieces").exists()
        other = save_checkpoint(tmp_path / "other.pt", 1, recipe={"gamma_sample": 3.0, "gamma_pair": 1.5})
        with pytest.raises(KeyboardInterrupt):
            by_pieces(InTurn(lambda name, piece: piece[0] == 0), [checkpoint])
        by_pieces(third := InTurn(), [other])
        assert len(third.calls) == 4, "the pieces of other checkpoints are not taken"
    finally:
        torch.set_num_threads(threads)
