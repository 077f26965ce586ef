"""WebDataset benchmarks: the same numbers as clip-benchmark on the same tars, and one line for every mistake."""

import functools
import http.server
import io
import json
import threading
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score

import eval_retrieval
import eval_zeroshot
from alip.checkpoint import load_model
from alip.checkpoint.export import export
from alip.distributed import World
from alip.errors import UserError
from alip.eval import wds_download
from alip.eval.datasets import open_classification, open_retrieval
from alip.eval.features import Encoding
from alip.eval.plots.retrieval import text_to_image
from alip.eval.retrieval import evaluate_retrieval, measure_retrieval
from alip.eval.tar_images import read_tars
from alip.eval.wds import open_wds_classification
from alip.eval.zeroshot import evaluate_zeroshot, measure_zeroshot
from tests.helpers.wds import write_wds

NAMES = ["tench", "gold fish", "shark", "ray", "hen", "ostrich", "junco"]
TEMPLATES = ("a photo of a {c}.", "art of the {c}.")


def captions(number):
    return [f"a picture {number} of {word}" for word in ("boat", "sun", "tree")[: 1 + number % 3]]


@pytest.fixture
def classes(tmp_path):
    labels = [number % 7 if number < 20 else 2 for number in range(30)]
    return write_wds(tmp_path / "wds_vtab-fish_test", labels, NAMES, TEMPLATES)


@pytest.fixture
def pairs(tmp_path):
    return write_wds(tmp_path / "wds_flickr8k", [captions(n) for n in range(17)], None, kind="retrieval")


@pytest.fixture(scope="module")
def peer(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer") / "open_clip"
    export(load_model(run), "open_clip", folder)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), transform


def test_same_numbers_as_clip_benchmark(classes, peer, run):
    build = pytest.importorskip("clip_benchmark.datasets.builder").build_dataset
    metrics = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    model, transform = peer
    theirs = build("wds/vtab/fish", root=str(classes), transform=transform, split="test", download=False)
    classifier = metrics.zero_shot_classifier(
        model, open_clip.tokenize, theirs.classes, theirs.templates, "cpu", amp=False
    )
    loader = torch.utils.data.DataLoader(theirs.batched(8), batch_size=None)
    logits, labels = metrics.run_classification(model, classifier, loader, "cpu", amp=False)
    dataset = open_classification(f"wds:{classes}")
    assert dataset.name == "wds/vtab-fish" and dataset.classnames == theirs.classes
    assert [dataset.images[i][1] for i in range(30)] == labels.tolist()
    ours = evaluate_zeroshot(load_model(run), dataset, world=World(), batch_size=8, workers=0)
    assert ours["top1"] == pytest.approx(100 * accuracy_score(labels, logits.argmax(1)), abs=1e-6)
    assert ours["mean_per_class"] == pytest.approx(100 * balanced_accuracy_score(labels, logits.argmax(1)), abs=1e-6)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean()
    assert ours["top5"] == pytest.approx(100 * float(top5), abs=1e-4) and 0 < ours["top5"] < 100


def test_same_recalls_as_clip_benchmark(pairs, peer, run):
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    metrics = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    model, transform = peer
    theirs = builder.build_dataset(
        "wds/flickr8k", root=str(pairs), transform=transform, download=False, task="zeroshot_retrieval"
    )
    loader = torch.utils.data.DataLoader(
        theirs.batched(8, collation_fn=builder.image_captions_collate_fn), batch_size=None
    )
    found = metrics.evaluate(model, loader, open_clip.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])
    dataset = open_retrieval(f"wds:{pairs}")
    assert dataset.name == "wds/flickr8k" and len(dataset.captions) == sum(1 + n % 3 for n in range(17))
    ours = evaluate_retrieval(load_model(run), dataset, world=World(), batch_size=8, workers=0)
    for k in (1, 5, 10):
        assert ours[f"image_to_text_R@{k}"] == pytest.approx(100 * found[f"text_retrieval_recall@{k}"], abs=1e-4)
        assert ours[f"text_to_image_R@{k}"] == pytest.approx(100 * found[f"image_retrieval_recall@{k}"], abs=1e-4)


def test_multilabel_as_clip_benchmark(tmp_path, peer, run):
    build = pytest.importorskip("clip_benchmark.datasets.builder").build_dataset
    metrics = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    model, transform = peer
    targets = np.random.default_rng(0).integers(0, 2, (19, 7)).astype(np.float32)
    folder = write_wds(tmp_path / "voc", [None] * 19, NAMES, TEMPLATES, kind="multilabel", arrays=targets)
    theirs = build("wds/voc", root=str(folder), transform=transform, split="test", download=False)
    loader = torch.utils.data.DataLoader(theirs.batched(8), batch_size=None)
    loader.dataset.classes = theirs.classes
    found = metrics.evaluate(model, loader, open_clip.tokenize, theirs.classes, theirs.templates, "cpu", amp=False)
    dataset = open_classification(f"wds:{folder}")
    measured = measure_zeroshot(load_model(run), dataset, Encoding(World(), 8, 0, progress=False))
    assert measured.numbers["primary"] == pytest.approx(100 * found["mean_average_precision"], abs=1e-4)
    assert measured.outcomes["hit_top1"].mean() * 100 == pytest.approx(measured.numbers["top1"])
    output = tmp_path / "out"
    assert (
        eval_zeroshot.main(
            f"--checkpoint {run} --datasets wds:{folder} --output {output} --workers 0 --no-plots".split()
        )
        == 0
    )
    with pytest.raises(UserError, match="several right classes"):
        eval_zeroshot.main(
            f"--checkpoint {run} --datasets wds:{folder} --output {output} --task probe --workers 0".split()
        )


def test_mixed_with_other_datasets_through_the_commands(classes, pairs, run, tmp_path, capsys):
    from tests.helpers.pairs import write_classes, write_pairs

    folder = write_classes(tmp_path / "sorts")
    output = tmp_path / "out"
    command = f"--checkpoint {run} --output {output} --workers 2 --batch-size 8 --device cpu --no-plots"
    assert eval_zeroshot.main(f"{command} --datasets wds:{classes} {folder}".split()) == 0
    assert (
        eval_retrieval.main(
            f"{command} --datasets wds:{pairs.name} {write_pairs(tmp_path / 'p')} --data-root {tmp_path}".split()
        )
        == 0
    )
    entries = json.loads((output / "results.json").read_text())["entries"]
    assert [entry["dataset"] for entry in entries] == ["wds/vtab-fish", "sorts", "wds/flickr8k", "p"]


def test_gallery_of_images_in_tars(pairs, run, tmp_path):
    found = measure_retrieval(load_model(run), open_retrieval(f"wds:{pairs}"), Encoding(World(), 8, 0, progress=False))
    text_to_image(found, tmp_path / "gallery", queries=1, top=1)
    assert (tmp_path / "gallery.png").is_file()


def test_probe_on_its_training_tars(tmp_path, run):
    labels = [number % 7 for number in range(28)]
    folder = write_wds(tmp_path / "fish", labels, NAMES)
    assert open_classification(f"wds:{folder}").train is None
    write_wds(folder, labels[::-1], None, split="train", seed=5)
    train = open_classification(f"wds:{folder}").train()
    assert train.labels.tolist() == labels[::-1]
    output = tmp_path / "out"
    assert (
        eval_zeroshot.main(
            f"--checkpoint {run} --datasets wds:{folder} --output {output} --task probe --workers 0 --no-plots".split()
        )
        == 0
    )


def test_index_is_flat_and_images_are_read_in_place(classes):
    images = open_classification(f"wds:{classes}").images
    assert images.tar.nbytes + images.start.nbytes + images.size.nbytes + images.labels.nbytes <= 28 * 30
    assert images.name(9).endswith("test/1.tar/s0000009.png")
    names = sorted(path.name for path in classes.rglob("*"))
    assert Image.open(io.BytesIO(images.data(9))).size == (18, 20)
    assert names == sorted(path.name for path in classes.rglob("*"))


def test_content_hash_is_of_the_content(classes, tmp_path):
    labels = [number % 7 if number < 20 else 2 for number in range(30)]
    again = write_wds(tmp_path / "again", labels, NAMES, per_tar=30)
    one, two = (open_classification(f"wds:{folder}").images for folder in (classes, again))
    assert one.content_hash() == two.content_hash() and one.cache_key() != two.cache_key()
    other = write_wds(tmp_path / "other", labels[::-1], NAMES, per_tar=30)
    assert open_classification(f"wds:{other}").images.content_hash() != one.content_hash()


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda f: (f / "test" / "2.tar").unlink(), r"2.tar is missing: .*nshards.txt counts 5 tars, 0.tar to 4.tar"),
        (lambda f: (f / "test" / "nshards.txt").unlink(), "test/nshards.txt is missing; expected: test/nshards.txt"),
        (lambda f: (f / "test" / "nshards.txt").write_text("many"), "'many'; a number of tars is expected"),
        (lambda f: (f / "test" / "nshards.txt").write_text("9" * 5000), "'99.*'; a number of tars is expected"),
        (lambda f: (f / "classnames.txt").unlink(), "classnames.txt is missing"),
        (lambda f: (f / "classnames.txt").write_text("cat\n\ndog\n\n"), "classnames.txt: line 2 is empty"),
        (lambda f: (f / "zeroshot_classification_templates.txt").write_text("a photo\n"), r"exactly one \{c\}"),
        (lambda f: (f / "dataset_type.txt").write_text("video"), "'video'; retrieval, multilabel or"),
        (lambda f: (f / "dataset_type.txt").write_text("retrieval"), "is a retrieval dataset: use eval_retrieval.py"),
        (lambda f: (f / "dataset_type.txt").write_text("multilabel"), "lacks a .npy"),
        (lambda f: cut(f / "test" / "1.tar"), r"test/1.tar is damaged: it ends"),
        (lambda f: damage(f / "test" / "1.tar"), r"test/1.tar is damaged: no header at byte"),
        (lambda f: pack(f / "test" / "0.tar"), r"0.tar is compressed"),
    ],
)
def test_mistakes_are_one_line(break_it, message, classes):
    break_it(classes)
    with pytest.raises(UserError, match=message) as error:
        open_classification(f"wds:{classes}")
    assert "\n" not in str(error.value)


def archive():
    out = io.BytesIO()
    np.savez(out, np.zeros(3))
    return out.getvalue()


def cut(path):
    path.write_bytes(path.read_bytes()[:3000])


def damage(path):
    data = bytearray(path.read_bytes())
    data[1024:1536] = b"\x07" * 512
    second = data.find(b"s0000008", 1536)
    data[second : second + 100] = b"\xff" * 100
    path.write_bytes(bytes(data))


def pack(path):
    import gzip

    path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize(
    "members, message",
    [
        ({"a.cls": b"1"}, "lacks an image"),
        ({"a.png": b"x"}, "lacks a .cls"),
        ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"1"}, "a second image of one sample"),
        ({"a.png": b"x", "a.cls": b"1", "a.x.cls": b"2"}, "a second .cls of one sample"),
        ({"a.png": b"x", "a.cls": b"9" * 30}, "a.cls cannot be read: a label of 30 digits"),
        ({"a.png": b"x", "a.cls": b"cat"}, "a.cls cannot be read: invalid literal"),
        ({"a.png": b"x", "a.cls": b"1", "a.npy": archive()}, "a.npy cannot be read: not an array"),
        ({"a.png": b"x", "a.cls": b"1", "a.npy": b"\x93NUMPY\1\0\4\0{\0\0("}, "a.npy cannot be read: not an array"),
    ],
)
def test_samples_that_are_not_whole(members, message, tmp_path):
    import tarfile

    from tests.helpers.wds import add

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    with pytest.raises(UserError, match=message):
        read_tars([tmp_path / "0.tar"], "cls", array="a.npy" in members)


def test_unreadable_image_is_named_and_counted(classes, run, tmp_path):
    tar = classes / "test" / "0.tar"
    data = bytearray(tar.read_bytes())
    start = data.index(b"\x89PNG")
    data[start : start + 8] = b"notapng!"
    tar.write_bytes(bytes(data))
    output = tmp_path / "out"
    command = f"--checkpoint {run} --datasets wds:{classes} --output {output} --workers 0 --no-plots --device cpu"
    assert eval_zeroshot.main(command.split()) == 1
    (entry,) = json.loads((output / "results.json").read_text())["entries"]
    assert entry["numbers"]["unreadable"] == 1 and "test/0.tar/s0000000.png" in entry["unreadable"][0]


def test_groups(tmp_path):
    folder = write_wds(tmp_path / "fmow", [0, 1, 2], NAMES, arrays=[[1, 2007, 0], [0, 2009, 1], [1, 2010, 2]])
    dataset = open_wds_classification(folder, "wds/wilds/fmow", metric="worst_group", groups=True)
    assert dataset.groups.tolist() == [[1, 2007, 0], [0, 2009, 1], [1, 2010, 2]]
    bad = write_wds(tmp_path / "bad", [0], NAMES, arrays=[[-1]])
    with pytest.raises(UserError, match="must be a group, 0 or higher"):
        open_wds_classification(bad, metric="worst_group", groups=True)


class Server(http.server.SimpleHTTPRequestHandler):
    """A folder, with the byte ranges that servers of data have."""

    def log_message(self, *rest):
        pass

    def do_GET(self):
        path = self.translate_path(self.path)
        asked = self.headers.get("Range")
        if asked is None or not Path(path).is_file():
            return super().do_GET()
        data = Path(path).read_bytes()
        first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}")
        self.send_header("Content-Length", str(len(data[first : last + 1])))
        self.end_headers()
        self.wfile.write(data[first : last + 1])


def test_download_of_a_typed_address(classes, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("alip.remote.access.ATTEMPTS", 2)
    monkeypatch.setattr("alip.remote.access.FIRST_PAUSE_S", 0.01)
    handler = functools.partial(Server, directory=str(classes.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/{classes.name}"
        dataset = open_classification(f"wds:{address}", tmp_path / "root")
        assert len(dataset.images) == 30 and dataset.name == "wds/vtab-fish"
        assert (tmp_path / "root" / "wds" / classes.name / "test" / "4.tar").is_file()
        with pytest.raises(UserError, match=r"nshards.txt"):
            open_classification(f"wds:{address}-no", tmp_path / "root")
    finally:
        server.shutdown()
        server.server_close()
    assert len(open_classification(f"wds:{address}", tmp_path / "root").images) == 30  # all there: no server needed
    (tmp_path / "root" / "wds" / classes.name / "test" / "3.tar").unlink()
    with pytest.raises(UserError, match=r"3.tar"):
        open_classification(f"wds:{address}", tmp_path / "root")


def test_addresses_of_the_hub():
    from alip.eval.wds_download import _folder_name, _raw_address

    base = _raw_address("https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main")
    assert base == "https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/resolve/main"
    assert _raw_address("https://huggingface.co/datasets/djghosh/wds_vtab-pets_test") == base
    assert _folder_name(base) == "datasets-djghosh-wds_vtab-pets_test"


def test_addresses_that_name_no_folder(tmp_path):
    with pytest.raises(UserError, match="no dataset of the Hub"):
        wds_download.download("https://huggingface.co/datasets/owner", tmp_path)
    name = wds_download._folder_name("https://example.org/" + "x" * 3000)
    assert len(name) == 64 and name != wds_download._folder_name("https://example.org/" + "x" * 2999)
