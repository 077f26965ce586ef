"""The gates' summary and plot where samples have several captions: a raw text is judged by its best caption."""

import numpy as np
import pyarrow.parquet
import pytest

from alip.build.joined_texts import TextFiles
from alip.build.prepare import CaptionPolicy, Policy
from alip.data.score_table import ScoreTable
from alip.data.shards import load_manifest
from alip.errors import UserError
from alip.eval.gates import page_data
from alip.eval.gates.labels import matched_auc, matched_aucs
from alip.eval.gates.page import write_page
from alip.eval.plots import __main__ as plots
from tests.helpers.browser import Page, open_page
from tests.helpers.score_tables import write_made_up_table
from tests.helpers.shards import build_shards, make_captioned_tars, make_tars


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards of 60 samples with 1 to 3 captions."""
    folder = tmp_path_factory.mktemp("several")
    tars, captions = make_captioned_tars(folder / "tars", 60, 4)
    policy = Policy(captions=CaptionPolicy(3, None))
    build_shards(tars, folder / "set", texts=TextFiles(captions=(str(captions),)), policy=policy, samples_per_shard=25)
    return folder / "set"


def test_the_plot_of_the_gates_takes_the_best_caption(data, tmp_path, monkeypatch):
    """A raw text is trusted as much as the caption that agrees with it best."""
    path = data
    manifest = load_manifest(path)
    labels = np.arange(manifest.samples) % 3 == 0
    scores = write_made_up_table(path, tmp_path / "gates.parquet")
    monkeypatch.setattr(plots, "read_mismatch_labels", lambda manifest, column: labels)
    drawn = {}

    def keep(scores, labels, aucs, path):
        drawn.update(labels=labels, **scores)

    monkeypatch.setattr(plots.training, "gates", keep)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1}\n')
    command = ["--run", str(tmp_path), "--scores", str(scores), "--mismatch-column", "x", "--data"]
    plots.main([*command, str(path)])
    rows = pyarrow.parquet.read_table(scores).to_pylist()
    best = [max(row["sample_text_weight"] for row in rows if row["index"] == n) for n in range(manifest.samples)]
    assert drawn["labels"].tolist() == labels.tolist() and drawn["sample_text_weight"].tolist() == best
    build_shards(make_tars(tmp_path / "other", 9), tmp_path / "nine")
    with pytest.raises(UserError, match=r"gates\.parquet is of other data"):
        plots.main([*command, str(tmp_path / "nine")])


def test_a_raw_text_is_separated_by_its_best_caption(data, tmp_path):
    """The AUCs of the raw texts' label are over samples, against a loop over them."""
    path = data
    scores = write_made_up_table(path, tmp_path / "gates.parquet")
    table = pyarrow.parquet.read_table(scores)
    wrong = np.asarray(table["index"]) % 3 == 0
    fields = table.schema.append(pyarrow.field("is_mismatched", pyarrow.bool_()))
    table = pyarrow.Table.from_arrays([*table.columns, pyarrow.array(wrong)], schema=fields)
    pyarrow.parquet.write_table(table, scores, write_page_checksum=True)
    rows = table.to_pylist()
    best: dict[int, float] = {}
    for row in rows:
        best[row["index"]] = max(best.get(row["index"], -9.0), row["text_caption_similarity"])
    labels = np.array([index % 3 == 0 for index in best])
    with ScoreTable(scores) as one:
        found = matched_aucs(one, "is_mismatched")["text_caption_similarity"]
    assert found == pytest.approx(matched_auc(np.array(list(best.values())), labels))
    assert found != pytest.approx(matched_auc(np.array([row["text_caption_similarity"] for row in rows]), wrong))


@pytest.fixture(scope="module")
def scored(data, tmp_path_factory):
    """The table, its rows, and a loop's choice: the row of each sample whose caption agrees best with its raw text."""
    path = write_made_up_table(data, tmp_path_factory.mktemp("table") / "gates.parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    best: dict[int, int] = {}
    for number, row in enumerate(rows):
        similarity = row["text_caption_similarity"]
        if row["index"] not in best or similarity > rows[best[row["index"]]]["text_caption_similarity"]:
            best[row["index"]] = number
    return path, rows, list(best.values())


def test_rankings_of_raw_texts_are_of_best_captions(scored):
    path, rows, best = scored
    with ScoreTable(path) as table:
        found = page_data.best_rows(table)
        assert np.flatnonzero(found).tolist() == best
        chosen, is_random = page_data.choose_samples(table, 2, 3, seed=0, best=found)
    similarity = np.array([row["text_caption_similarity"] for row in rows])
    lowest = sorted(best, key=lambda number: similarity[number])[:3]
    assert set(lowest) <= set(chosen.tolist()) and is_random.sum() == 2
    of_captions = np.argsort([row["image_caption_similarity"] for row in rows])[:3]
    assert set(of_captions.tolist()) <= set(chosen.tolist())


def test_browser_shows_a_raw_text_once(data, scored, tmp_path):
    path, rows, best = scored
    with ScoreTable(path) as table:
        write_page(tmp_path / "gates.html", page_data.collect(table, load_manifest(data)))
    page = Page(open_page(tmp_path / "gates.html", tmp_path / "profile"))
    order = sorted(best, key=lambda number: round(rows[number]["text_caption_similarity"], 4))
    assert page.count.startswith("60 of 60 samples")
    assert [card["caption"] for card in page.cards] == [rows[number]["caption"] for number in order]
    every = Page(open_page(tmp_path / "gates.html", tmp_path / "profile", "sort=image_caption_similarity&order=asc"))
    assert every.count.startswith(f"{len(rows)} of {len(rows)} captions")
