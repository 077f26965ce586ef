"""The report page: what it is made of, and what a browser shows of it."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from alip.data.score_table import SCORES, ScoreTable, data_metadata
from alip.data.shards import load_manifest, read_texts
from alip.eval.gates import page_data
from alip.eval.gates.page import write_page
from alip.eval.gates.scoring import write_scores
from alip.eval.html_page import ASSETS, script_json
from tests.helpers.browser import Page, find_browser, open_page
from tests.helpers.score_tables import made_up_scores, write_made_up_table
from tests.helpers.shards import build_shards, encoded, make_image, write_tar

EVIL = "</script><img src=x onerror=\"document.title='owned'\"><!--"
TEXTS = [
    EVIL,
    "<b>bold</b> &amp; $x^2$ 100 % 'quoted' \"twice\" \\ back\\u003cslash",
    "犬が走る, собака, 👩‍🚀 emoji\u2028line\u2029ends",
    "\u202eright to left\u202c, עברית, \ufffd end",
    "javascript:alert(1) %%DATA%% %%STYLE%%",
    "a dog runs over grass",
    "a cat sleeps",
]


@pytest.fixture(scope="module")
def table(shards, tmp_path_factory):
    path = write_made_up_table(shards, tmp_path_factory.mktemp("table") / "gates.parquet", label="odd")
    with ScoreTable(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """A dataset whose texts do harm if anything takes them for markup, and its page."""
    folder = tmp_path_factory.mktemp("nasty")
    samples = [
        {
            "jpg": encoded(make_image(i)),
            "json": json.dumps({"text": text, "caption": text[::-1], "is_mismatched": i < 2}).encode(),
        }
        for i, text in enumerate(TEXTS)
    ]
    write_tar(folder / "a.tar", samples, [f"key<i>{i}" for i in range(len(TEXTS))])
    build_shards(folder / "a.tar", folder / "nasty")
    path = write_made_up_table(folder / "nasty", folder / "gates.parquet", label="is_mismatched")
    with ScoreTable(path) as opened:
        write_page(folder / "gates.html", page_data.collect(opened, load_manifest(folder / "nasty")))
    return folder / "gates.html"


def test_random_choice_and_extremes(table):
    chosen, is_random = page_data.choose_samples(table, 40, 5, seed=1)
    assert is_random.sum() == 40
    assert (np.diff(chosen) > 0).all() and 45 <= len(chosen) <= 80
    scores = made_up_scores(np.arange(230))
    for name in page_data.RANKINGS:
        order = np.argsort(scores[name])
        assert set(order[:5]) | set(order[-5:]) <= set(chosen.tolist())
    assert (chosen == page_data.choose_samples(table, 40, 5, seed=1)[0]).all()
    assert set(chosen) != set(page_data.choose_samples(table, 40, 5, seed=2)[0])
    assert len(page_data.choose_samples(table, 2000, 100, seed=1)[0]) == 230


def test_equal_scores_at_the_end_of_a_ranking_are_taken_at_random():
    smallest = page_data._Smallest(50)
    rng = np.random.default_rng(0)
    for start in range(0, 10_000, 1000):
        smallest.add(np.ones(1000), rng.random(1000), np.arange(start, start + 1000))
    assert 3000 < smallest.index.mean() < 7000 and len(set(smallest.index)) == 50


def test_histograms_count_every_sample(table):
    scores, odd = made_up_scores(np.arange(230)), np.arange(230) % 2 == 1
    for name, one in page_data.histograms(table, "is_mismatched").items():
        for group, part in (("matched", ~odd), ("mismatched", odd)):
            assert one[group] == np.histogram(scores[name][part].astype(float), one["edges"])[0].tolist()
        assert sum(one["matched"]) + sum(one["mismatched"]) == 230
    assert sum(page_data.histograms(table, None)["text_weight"]["all"]) == 230


def test_curves_are_of_finding_mismatched_samples_by_low_scores(table):
    from alip.eval.gates.labels import matched_auc

    found = page_data.curves(table, "is_mismatched")
    assert found["fraction"] == 0.5
    odd = np.arange(230) % 2 == 1
    for name, values in made_up_scores(np.arange(230)).items():
        one = found["scores"][name]
        assert one["auc"] == pytest.approx(matched_auc(values, odd), abs=1e-9)
        x, y = one["roc"]
        assert x[0] == y[0] == 0 and x[-1] == y[-1] == 100 and len(x) <= page_data.CURVE_POINTS + 2
        # A point of the curve, counted by hand: as many found as the strictest threshold with these false positives.
        order = np.argsort(values)
        mismatched, matched = np.cumsum(odd[order]) / 115, np.cumsum(~odd[order]) / 115
        at = len(x) // 2
        assert np.isclose(mismatched[np.isclose(matched, x[at] / 100, atol=1e-4)], y[at] / 100, atol=1e-4).any()


def test_thumbnails_fit_the_page(shards):
    manifest = load_manifest(shards)
    chosen = np.arange(0, 230, 3)
    thumbnails = page_data.thumbnails(manifest, chosen, 10**7)
    assert len(thumbnails) == len(chosen)
    with Image.open(io.BytesIO(base64.b64decode(thumbnails[5]))) as image:
        assert image.format == "JPEG" and image.size == (48, 40)
        difference = np.abs(np.asarray(image, dtype=int) - np.asarray(make_image(15), dtype=int)).mean()
    assert difference < 6, "the image of sample 15, not of another"
    small = page_data.thumbnails(manifest, chosen, 30_000)
    assert sum(map(len, small)) <= 30_000 and any(small)


def test_thumbnails_take_what_the_texts_leave_of_the_page(table, shards):
    manifest = load_manifest(shards)
    whole = page_data.collect(table, manifest)
    texts = len(script_json({**whole["rows"], "image": []}))
    for limit in (texts + 60_000, texts - 1):
        content = page_data.collect(table, manifest, page_bytes=limit)
        assert len(script_json(content["rows"])) <= max(limit, texts) + 4 * 230  # quotes and commas of the images
        assert any(content["rows"]["image"]) == (limit > texts)
        assert content["rows"]["text"] == whole["rows"]["text"]


def test_large_images_become_small_ones(tmp_path):
    write_tar(
        tmp_path / "a.tar", [{"jpg": encoded(make_image(0, 900, 600)), "json": b'{"text": "t", "caption": "c"}'}], ["k"]
    )
    build_shards(tmp_path / "a.tar", tmp_path / "one")
    (one,) = page_data.thumbnails(load_manifest(tmp_path / "one"), np.arange(1), 10**6)
    with Image.open(io.BytesIO(base64.b64decode(one))) as image:
        assert max(image.size) == page_data.SIDES[0] and len(one) < 10_000


def test_page_is_one_file_that_names_no_other(nasty):
    html = nasty.read_text(encoding="utf-8")
    library = (ASSETS / "plotly-basic.min.js").read_text(encoding="utf-8")
    own = html.replace(library, "")
    assert len(own) < len(html) / 2 and "MIT license" in html[: html.index("</html>")]
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)|@import|url\(|fetch\(|XMLHttp""", own.replace(EVIL[9:], ""))
    assert "default-src 'none'" in own and "connect-src" not in own
    assert own.count("<script") == 3 and own.count("</script>") == 3, "no text ends the data's element"
    content = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', own, re.S).group(1))
    stored = [row["text"] for row in read_texts(load_manifest(nasty.parent / "nasty"))]
    assert content["rows"]["text"] == stored and stored[0] == EVIL


def test_script_json_round_trips():
    values = [*TEXTS[:3], "<!-- <script> --> ]]>", "\x00\x7f"]
    text = script_json(values)
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == values
    assert json.loads(script_json(["\ud800"])) == ["\ud800"]
    with pytest.raises(ValueError):
        script_json([float("nan")])


def test_browser_shows_texts_as_text(nasty, tmp_path):
    page = Page(open_page(nasty, tmp_path / "profile"))
    assert page.title == "Gate report: nasty"
    assert page.body["data-ready"] == "yes" and page.body["data-shown"] == "7"
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.images) and len(page.images) == 7
    assert "b" in page.elements and "i" in page.elements  # the page's own
    shown = {int(card["index"]): card for card in page.cards}
    assert shown[0]["text"] == EVIL and shown[0]["tag"] == "mismatched" and "tag" not in shown[5]
    assert shown[1]["text"] == TEXTS[1] and shown[1]["caption"] == TEXTS[1][::-1]
    assert "犬が走る" in shown[2]["text"] and "👩‍🚀" in shown[2]["text"]
    order = np.argsort(made_up_scores(np.arange(7))["text_caption_similarity"])
    assert [int(card["index"]) for card in page.cards] == order.tolist(), "least trusted raw texts first"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("q=DOG+grass", [5]),
        ("q=no+such+word", []),
        ("q=%3C%2Fscript%3E", [0]),
        ("label=is_mismatched:true&sort=index&order=asc", [0, 1]),
        ("sort=index&order=desc", [6, 5, 4, 3, 2, 1, 0]),
        ("range=index,2,4&sort=index", [2, 3, 4]),
        ("sort=__proto__&order=up&range=a,b,c&label=x&q=cat", [6]),
    ],
)
def test_browser_searches_sorts_and_selects(nasty, tmp_path, state, expected):
    page = Page(open_page(nasty, tmp_path / "profile", state))
    assert [int(card["index"]) for card in page.cards] == expected
    assert page.count.startswith(f"{len(expected)} of 7 samples")


def test_browser_selects_by_scores(nasty, tmp_path):
    scores = made_up_scores(np.arange(7))
    state = "range=image_text_similarity,-0.5,0.5&range=image_caption_similarity,-1,0.2&sort=index&order=asc"
    page = Page(open_page(nasty, tmp_path / "profile", state))
    x, y = scores["image_text_similarity"], scores["image_caption_similarity"]
    assert [int(card["index"]) for card in page.cards] == np.flatnonzero((abs(x) <= 0.5) & (y <= 0.2)).tolist()
    assert "Selection: S_xt -0.50 to 0.50, S_xc -1.00 to 0.20" in page.count


DRAG = """<script>
addEventListener("load", () => setTimeout(() => {
  const area = document.querySelector("SELECTOR .nsewdrag").getBoundingClientRect();
  const fire = (type, x, y) => {
    const at = { clientX: area.x + area.width * x, clientY: area.y + area.height * y };
    (document.elementFromPoint(at.clientX, at.clientY) || document).dispatchEvent(
      new MouseEvent(type, { ...at, bubbles: true, cancelable: true, view: window, button: 0, buttons: 1 }));
  };
  fire("mousedown", 0.02, 0.02);
  for (const step of [0.1, 0.3, 0.5]) fire("mousemove", step, 2 * step - 0.02);
  fire("mouseup", 0.5, 0.98);
}, 1500));
</script>"""


@pytest.mark.parametrize(("selector", "score"), [("#scatter", "image_text_similarity"), (".histogram", SCORES[0])])
def test_dragging_over_a_plot_filters_the_gallery(table, shards, tmp_path, selector, score):
    """The left half of a plot, by a mouse's events: these samples are in the gallery, and no other."""
    write_page(tmp_path / "gates.html", page_data.collect(table, load_manifest(shards)))
    page = (tmp_path / "gates.html").read_text(encoding="utf-8")
    page = page.replace("</body>", DRAG.replace("SELECTOR", selector) + "</body>")
    (tmp_path / "gates.html").write_text(page, encoding="utf-8")
    found = Page(open_page(tmp_path / "gates.html", tmp_path / "profile", size=(1400, 2400)))
    symbol = {"image_text_similarity": "S_xt", "text_caption_similarity": "S_tc"}[score]
    low, high = map(float, re.search(rf"Selection: .*?{symbol} (\S+) to ([-0-9.]+)", found.count).groups())
    values = made_up_scores(np.arange(230))[score]
    inside = int(found.body["data-found"])
    assert 20 < inside < 200 and high < values.max() - 0.3
    shown = np.array([int(card["index"]) for card in found.cards])
    assert (
        len(shown) == min(60, inside) and (values[shown] >= low - 0.01).all() and (values[shown] <= high + 0.01).all()
    )
    if selector == ".histogram":
        most, least = (int(((values >= low - d) & (values <= high + d)).sum()) for d in (0.005, -0.005))
        assert least <= inside <= most  # the page shows two digits of the range


def test_browser_draws_the_plots(nasty, tmp_path):
    find_browser()
    open_page(nasty, tmp_path / "profile", screenshot=tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    assert image.size == (1400, 1000)
    for color in ((213, 94, 0), (0, 114, 178)):  # of mismatched and of matched samples
        assert (np.abs(pixels - color).max(axis=1) < 30).sum() > 100, color
    html = open_page(nasty, tmp_path / "profile")
    assert html.count('class="histogram') >= len(SCORES) and html.count("main-svg") >= 2 * (len(SCORES) + 3)


def test_a_page_of_many_samples_is_bounded(shards, tmp_path):
    """Fifty thousand rows of a dataset with long texts: a bounded choice of them is in the page."""
    manifest = load_manifest(shards)
    rows = 50_000

    def batches():
        for start in range(0, rows, 5000):
            index = np.arange(start, start + 5000)
            content = {"index": index, "key": [str(i) for i in index], "shard": ["x.rec"] * 5000}
            content |= {"record": index.astype(np.int32), "text": ["long " * 400] * 5000, "caption": ["c"] * 5000}
            yield content | made_up_scores(index)

    write_scores(tmp_path / "gates.parquet", manifest, batches(), [])
    with ScoreTable(tmp_path / "gates.parquet") as opened:
        assert opened.metadata["data"] == data_metadata(manifest)
        chosen, _ = page_data.choose_samples(opened, 300, 20, seed=0)
        assert 300 <= len(chosen) <= 300 + 2 * len(page_data.RANKINGS) * 20
        assert 20_000 < chosen.mean() < 30_000
        content = page_data._rows(opened, chosen, [])
        assert content["index"] == chosen.tolist() and max(map(len, content["text"])) == page_data.LONGEST_TEXT
