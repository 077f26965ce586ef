"""Every plot, on what breaks plots: odd texts, one image, one class, many classes, runs that just began."""

import contextlib
import json
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from alip import plot_style as style
from alip.errors import UserError
from alip.eval import published
from alip.eval.caption_files import RetrievalDataset
from alip.eval.datasets import ClassificationDataset
from alip.eval.image_readers import ImageFiles
from alip.eval.plots import __main__ as command
from alip.eval.plots import bars as bars_module
from alip.eval.plots import classification, retrieval, training
from alip.eval.retrieval import Retrieved
from alip.eval.zeroshot import Classified

TEXTS = [
    "it costs $5_{ and $10",
    "half a pair \ud800 and \udfff",
    "東京の写真",
    "emoji 🙂 👩‍👩‍👧 ❤️",
    "نص عربي \\frac{1}{2} ^",
    "long " * 80,
    "x" * 300,
    "tab\tand\nline\x00nul\u2028end",
    "%s {} {0} \\n & < > \" '",
    "\u0301 \ufeff \ue000 \U0010ffff",
]


def check_files(path, least=2000):
    """Both files are there and whole, and something is plotted."""
    png, svg = style.outputs(path)
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 5 and pixels.mean() > 100  # on white
    assert svg.stat().st_size > least and ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert not [file for file in path.parent.iterdir() if file.suffix == ".tmp"]


def found(tmp_path, images, captions_each, texts=TEXTS):
    generator = torch.Generator().manual_seed(0)
    paths, captions, owner = [], [], []
    for number in range(images):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (20 + 30 * (number % 3), 40), (9 * number % 256, 99, 200)).save(paths[-1])
        for _ in range(captions_each):
            owner.append(number)
            captions.append(texts[len(captions) % len(texts)])
    features = torch.nn.functional.normalize(torch.randn(images, 8, generator=generator), dim=1)
    noise = torch.randn(len(owner), 8, generator=generator)
    text_features = torch.nn.functional.normalize(features[owner] + 0.4 * noise, dim=1)
    return Retrieved({}, RetrievalDataset("$odd_{/東京\ud800", paths, captions, owner), features, text_features, [])


@pytest.mark.parametrize("images, captions_each", [(20, 2), (1, 1), (3, 5)])
def test_gallery_of_any_texts(tmp_path, images, captions_each):
    retrieval.gallery(found(tmp_path, images, captions_each), tmp_path / "out" / "gallery-x")
    check_files(tmp_path / "out" / "gallery-x")
    check_files(tmp_path / "out" / "gallery-x-image-to-text")


def test_gallery_shows_the_right_image_and_its_rank(tmp_path, monkeypatch):
    """The right one is there with its score even when it is last; an image that is gone is a grey square."""
    example = found(tmp_path, 12, 1, ["one", "two", "three"])
    reversed_features = Retrieved({}, example.dataset, example.image_features, -example.image_features, [])
    shown, notes = [], []
    real = retrieval._show
    monkeypatch.setattr(
        retrieval,
        "_show",
        lambda cell, images, index, right: shown.append((index, right)) or real(cell, images, index, right),
    )
    monkeypatch.setattr(retrieval, "_score", lambda cell, score, note: notes.append((round(score, 3), note)))
    example.dataset.images[0].unlink()
    retrieval.text_to_image(reversed_features, tmp_path / "gallery", queries=12, top=5)
    for row in range(12):
        cells = shown[6 * row : 6 * row + 6]
        assert cells[-1] == (row, True)
        assert all(right is False for _, right in cells[:-1])
    assert [note for _, note in notes[5::6]] == ["rank 12"] * 12
    assert notes[5][0] == -1.0
    check_files(tmp_path / "gallery")


def classified(classes, images_each, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(images_each)
    random = torch.randint(classes, labels.shape, generator=generator)
    predictions = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, random)
    names = [f"{TEXTS[number % len(TEXTS)]} {number}" for number in range(classes)]
    dataset = ClassificationDataset("sorts $_{", ImageFiles([]), names, ["{}"])
    return Classified({"mean_per_class": 61.0}, dataset, labels, predictions, [])


@pytest.mark.parametrize("classes", [1, 2, 12, 13, 45, 130])
def test_confusion_and_per_class(tmp_path, classes):
    example = classified(classes, 7)
    classification.confusion(example, tmp_path / "confusion")
    classification.per_class(example, tmp_path / "per-class")
    check_files(tmp_path / "confusion")
    check_files(tmp_path / "per-class")


def test_rows_of_the_confusion_matrix_sum_to_100():
    example = classified(45, 7)
    shown = np.arange(3, 33)
    percent = classification.confusion_percent(example, shown)
    assert percent.shape == (30, 31)  # and "other"
    np.testing.assert_allclose(percent.sum(1), 100)
    labels, predictions = example.labels.numpy(), example.predictions.numpy()
    for row, label in enumerate(shown):
        own = predictions[labels == label]
        assert percent[row, row] == pytest.approx(100 * (own == label).mean())
        assert percent[row, -1] == pytest.approx(100 * (~np.isin(own, shown)).mean())
    whole = classification.confusion_percent(example, np.arange(45))
    assert whole.shape == (45, 45)
    np.testing.assert_allclose(whole.sum(1), 100)


def test_bars_are_scaled_to_their_values_and_have_chance(tmp_path, monkeypatch):
    seen = []
    real = style.figure

    class Spy:
        def __init__(self, *rest):
            self.context = real(*rest)

        def __enter__(self):
            self.figure = self.context.__enter__()
            return self.figure

        def __exit__(self, *error):
            seen.append(self.figure.axes[0])
            return self.context.__exit__(*error)

    monkeypatch.setattr(bars_module.style, "figure", Spy)
    rows = [(TEXTS[0], [1.5, 2.5], True), ("theirs", [None, 2.0], False), (TEXTS[1], [None, 3.0], True)]
    series = [bars_module.Series(*row) for row in rows]
    bars_module.bars(["a", "b"], series, TEXTS[0], "accuracy (%)", tmp_path / "bars", chance=[0.5, 1.0])
    (axis,) = seen
    assert 3.0 < axis.get_ylim()[1] < 4.0 and axis.get_ylim()[0] == 0
    assert axis.get_ylabel() == "accuracy (%)"
    assert sorted(patch.get_height() for patch in axis.patches) == [1.5, 2.5, 3.0]
    assert [line.get_segments()[0][0][1] for line in axis.collections] == [0.5, 1.0]
    check_files(tmp_path / "bars")


def test_a_mean_of_several_runs_has_their_standard_deviation(tmp_path, figures):
    series = [bars_module.Series("seeds", [10.0, 20.0], True, [2.0, None]), bars_module.Series("run", [5.0, 1.0], True)]
    bars_module.bars(["a", "b"], series, "title", "accuracy (%)", tmp_path / "bars")
    (axis,) = figures[0].axes
    (ends,) = [collection.get_segments() for collection in axis.collections]
    assert [[y for _, y in segment] for segment in ends] == [[8.0, 12.0]], "one group of one row has several runs"
    assert ends[0][0][0] == pytest.approx(axis.patches[0].get_x() + axis.patches[0].get_width() / 2)
    above = {text.get_text(): text.xy[1] for text in axis.texts}
    assert above == {"10.0": 12.0, "20.0": 20.0, "5.0": 5.0, "1.0": 1.0}
    check_files(tmp_path / "bars")


def inside(figure, artist):
    """Whether the artist is drawn within the figure."""
    figure.draw_without_rendering()
    box, page = artist.get_window_extent(), figure.bbox
    return box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is drawn."""
    seen, real = [], style.figure

    @contextlib.contextmanager
    def figure(*rest):
        with real(*rest) as made:
            seen.append(made)
            yield made

    monkeypatch.setattr(style, "figure", figure)
    return seen


def test_nothing_is_cut_off(tmp_path, figures):
    labels = [f"run (standard, step {n}, EMA, amp_bf16)" for n in range(5)]
    series = [bars_module.Series(label, [20.0, 60.0], True) for label in labels]
    bars_module.bars(["a", "b"], series, "title", "recall (%)", tmp_path / "bars", chance=[None, 1.0])
    (legend,) = figures[0].legends
    assert inside(figures[0], legend) and len(legend.get_texts()) == 6
    assert len(figures[0].axes[0].collections) == 1, "chance where it is known"
    names = [f"a dataset of a long name, {n} shots" for n in range(8)]
    bars_module.bars(names, [bars_module.Series("run", [20.0] * 8, True)], "title", "recall (%)", tmp_path / "names")
    boxes = [label.get_window_extent() for label in figures[1].axes[0].get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes)) and figures[1].axes[0].bbox.height > 150
    classification.confusion(classified(2, 7), tmp_path / "confusion")
    assert inside(figures[2], figures[2].axes[0].yaxis.label)


def test_many_evaluations_are_named_below_the_panels(tmp_path, figures):
    run = write_run(tmp_path / "run", 3, False)
    lines = [{"kind": "eval", "step": 3, "task": "zeroshot", "dataset": f"d{n}", "primary": 1.0} for n in range(30)]
    log = run / "metrics.jsonl"
    log.write_text("\n".join([*map(json.dumps, lines), log.read_text()]))
    training.curves(run, tmp_path / "curves")
    (legend,) = figures[0].legends
    assert len(legend.get_texts()) == 32 and figures[0].axes[3].get_legend() is None
    assert legend.get_window_extent().y1 <= figures[0].axes[3].bbox.y0 and inside(figures[0], legend)


def test_a_run_that_has_logged_once_is_points(tmp_path, figures):
    training.curves(write_run(tmp_path / "run", 1, False), tmp_path / "curves")
    lines = [line for axis in figures[0].axes for line in axis.lines]
    assert lines and all(line.get_marker() not in (None, "None") for line in lines)


def test_a_run_that_diverged_shows_its_last_finite_point(tmp_path, figures):
    run = write_run(tmp_path / "run", 8, False)
    lines = (run / "metrics.jsonl").read_text().splitlines()[:-1]  # the last one is not whole
    rows = [json.loads(line) for line in lines]
    for row in [row for row in rows if row["kind"] == "train"][1:]:
        row |= {name: None for name, value in row.items() if isinstance(value, float)}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training.curves(run, tmp_path / "curves")
    losses = figures[0].axes[0].lines
    assert losses and all(line.get_marker() == "o" and line.get_markevery() == [0] for line in losses)
    assert "7 logged steps have no finite loss" in figures[0].get_suptitle()


def test_points_that_a_line_does_not_show():
    nan = float("nan")
    assert training._alone(np.array([1, nan, 2, 3, nan, nan, 4])) == [0, 6]
    assert training._alone(np.array([nan, 1])) == [1] and training._alone(np.array([1, 2])) == []


def test_bars_beside_all_published_methods(tmp_path):
    names = list(published.ZEROSHOT["ALIP"])
    series = bars_module.Series
    theirs = [series(method, [values[name] for name in names], False) for method, values in published.ZEROSHOT.items()]
    ours = [series(f"run {n}", [50.0 + n] * len(names), True) for n in range(7)]
    bars_module.bars(names, [*theirs, *ours], "title", "accuracy (%)", tmp_path / "many")
    check_files(tmp_path / "many")
    bars_module.bars(["one"], [series("run", [0.0], True)], "title", "accuracy (%)", tmp_path / "zero")
    check_files(tmp_path / "zero")


def write_run(folder, steps, old=False):
    """metrics.jsonl as train.py writes it; old: with the names of version 0.1."""
    folder.mkdir()
    dataset, speed = ("set", "pairs_per_s") if old else ("dataset", "samples_per_s")
    rows = []
    for step in range(1, steps + 1):
        similarity = {f"{pair}_similarity": step / 99 for pair in ("text_caption", "image_text", "image_caption")}
        history = {f"history_{short}": 1 - step / 99 for short in ("tc", "xt", "xc")}
        weights = dict.fromkeys(("sample_weight", "text_weight", "caption_weight"), 0.9)
        losses = {"loss": 9 / step, "text_loss": 4 / step, "caption_loss": 5 / step}
        rows.append(
            {"kind": "train", "step": step, **similarity, **history, **weights, **losses, speed: 9.0}
            | {"lr": 1e-3, "logit_scale": 14.0}
        )
    rows.append({"kind": "eval", "step": steps, "task": "zeroshot", dataset: TEXTS[0], "primary": 12.0})
    recalls = {"image_to_text_R@1": 3.0, "text_to_image_R@1": 5.0}
    rows.append({"kind": "eval", "step": steps, "task": "retrieval", dataset: "pairs", **recalls})
    rows.append({"kind": "train", "step": steps, **losses, "loss": float("nan")})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"kind": "tra')
    return folder


@pytest.mark.parametrize("old", [False, True])
def test_curves(tmp_path, capsys, old):
    run = write_run(tmp_path / "run", 30, old)
    assert command.main(["--run", str(run)]) == 0
    (tmp_path / "file").touch()
    assert command.main(["--run", str(run), "--output", str(tmp_path / "file" / "x")]) == 1, "no plot could be made"
    capsys.readouterr()
    assert command.main(["--run", str(run)]) == 0
    check_files(run / "plots" / "curves")
    assert capsys.readouterr().out.split() == [str(run / "plots" / f"curves.{form}") for form in ("png", "svg")]
    evaluations = training.read_evaluations(run)
    assert evaluations == {f"zeroshot/{TEXTS[0]}": ([30], [12.0]), "retrieval/pairs": ([30], [4.0])}


def test_lines_of_a_resumed_run_replace_earlier_ones(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join(json.dumps({"kind": "train", "step": step, "loss": loss}) for step, loss in ((1, 9), (2, 8), (2, 7)))
    )
    metrics = training.read_metrics(tmp_path, "train")
    assert metrics["step"].tolist() == [1, 2] and metrics["loss"].tolist() == [9, 7]
    training.curves(tmp_path, tmp_path / "few")  # only the loss, and only two steps
    check_files(tmp_path / "few")


def test_wrong_runs_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file; name the folder of a run"):
        command.main(["--run", str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has no lines of kind 'train' yet"):
        command.main(["--run", str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text("{nonsense\n{}\n")
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        command.main(["--run", str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1' + "0" * 400 + "}\n{}\n")
    with pytest.raises(UserError, match=r"line 1: not valid JSON \(a number of 401 digits"):
        command.main(["--run", str(tmp_path)])


def test_gates(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.4
    scores = {"text_caption_similarity": rng.normal(0.5, 0.1, 500) - 0.2 * labels}
    scores["sample_text_weight"] = np.full(500, 0.7)  # all equal
    training.gates(scores, labels, dict.fromkeys(scores, 0.9), tmp_path / "gates")
    check_files(tmp_path / "gates")
    training.gates(scores, np.zeros(500, bool), {name: float("nan") for name in scores}, tmp_path / "matched")
    check_files(tmp_path / "matched")


def test_texts_with_and_without_glyphs():
    assert style.printable("a plain “text” – ünïcode") == "a plain “text” – ünïcode"
    assert style.printable("\ud800") == "\\ud800"
    assert style.printable("a\tb\nc\x00d") == "a b c d"
    without = [character for character in "東🙂\ue000" if style.printable(character) != character]
    expected = {"東": "\\u6771", "🙂": ":slightly smiling face:", "\ue000": "\\ue000"}
    assert all(style.printable(character) == expected[character] for character in without)
    assert style.shorten("word " * 9, 12) == "word word w…"
    assert style.wrap("one two three four", 8, 2) == "one two\nthree…"
    assert style.wrap("", 8, 2) == ""
    for text in TEXTS:
        wrapped = style.wrap(text, 20, 4).split("\n")
        assert len(wrapped) <= 4 and all(len(line) <= 20 for line in wrapped)


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    series = [bars_module.Series("run", [5.0], True, [1.0])]
    for name in ("one", "two"):
        bars_module.bars(["a"], series, "title", "accuracy (%)", tmp_path / name, [1.0])
    for one, two in zip(style.outputs(tmp_path / "one"), style.outputs(tmp_path / "two")):
        assert one.read_bytes() == two.read_bytes()


def lightness(colour):
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2


def test_colours_differ_in_grey_print():
    values = sorted(lightness(colour) ** (1 / 2.2) for colour in style.SERIES[:3])
    assert min(np.diff(values)) > 0.12
    assert abs(lightness(style.MATCHED) ** 0.45 - lightness(style.MISMATCHED) ** 0.45) > 0.35
