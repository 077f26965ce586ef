"""The datasets beyond the paper's eleven: true layouts, and lists that agree with a second source."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import eval_zeroshot
from alip.errors import UserError
from alip.eval.dataset_records import CLASSIFICATION
from alip.eval.datasets import open_classification
from alip.eval.named_lists import classes, folders, templates
from alip.eval.prompts import SLIP_NAMES, check_templates, templates_of
from alip.eval.records_paper import PAPER
from tests.helpers.archives import class_of
from tests.helpers.benchmark_archives import WRITERS, fer2013_csv

builder = pytest.importorskip("clip_benchmark.datasets.builder")


def shown(images, index):
    image, label = images[index]
    if image.width == 28 or image.width == 48:
        return int(np.asarray(image)[4, 4, 0]) // 16, label
    return class_of(image), label


def test_there_are_writers_for_all():
    assert {*WRITERS} | {*PAPER} == {*CLASSIFICATION}


@pytest.mark.parametrize("name", WRITERS)
def test_true_layout(name, tmp_path):
    if name == "pcam":
        pytest.importorskip("h5py")
    count = WRITERS[name](tmp_path)
    dataset = open_classification(name, tmp_path)
    record = CLASSIFICATION[name]
    assert (len(dataset.images), dataset.classnames) == (count, list(record.names))
    assert (dataset.benchmark, dataset.metric) == (name, record.metric)
    pairs = [shown(dataset.images, index) for index in range(0, count, max(1, count // 40))]
    assert all(seen == label for seen, label in pairs)
    if count > 1 and name != "kitti":
        assert len({label for _, label in pairs}) > 1
    assert dataset.images.name(0)
    assert dataset.images.cache_key() == open_classification(name, tmp_path).images.cache_key()
    assert dataset.images.content_hash() == open_classification(name, tmp_path).images.content_hash()
    if dataset.train is not None:
        train = dataset.train()
        assert all(seen == label for seen, label in (shown(train, i) for i in range(0, len(train), 7)))
        assert train.name(0) not in {dataset.images.name(index) for index in range(count)}


def test_through_the_command(tmp_path, run):
    WRITERS["hateful-memes"](tmp_path / "data")
    output = tmp_path / "out"
    command = f"--checkpoint {run} --datasets hateful-memes --data-root {tmp_path / 'data'} --output {output}"
    assert eval_zeroshot.main(f"{command} --no-plots --workers 0 --device cpu".split()) == 0
    (entry,) = json.loads((output / "results.json").read_text())["entries"]
    assert entry["primary_metric"] == "roc_auc" and entry["expected_images"] == [500]
    assert entry["numbers"]["images"] == 4 and 0 <= entry["numbers"]["primary"] <= 100


# Mistakes ------------------------------------------------------------------------------------------------------


def mistake(name, root, break_it, message):
    WRITERS[name](root)
    break_it(root)
    with pytest.raises(UserError, match=message) as error:
        open_classification(name, root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, break_it, message",
    [
        ("sst2", lambda r: shutil.rmtree(r / "rendered-sst2/test/positive"), "1 of 2 class folders; 'positive' is"),
        ("imagenet-r", lambda r: (r / "imagenet-r/n99999999").mkdir(), "n99999999: no such class"),
        ("sst2", lambda r: (r / "rendered-sst2/test/Positive").mkdir(), "is a folder of that class, too"),
        ("mnist", lambda r: (r / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03"), "is no idx file"),
        ("stl10", lambda r: (r / "stl10_binary/test_X.bin").write_bytes(b"abc"), "3 bytes, but 10 images of 27,648"),
        ("stl10", lambda r: (r / "stl10_binary/class_names.txt").write_text("cat\n"), "other names are expected"),
        ("svhn", lambda r: (r / "svhn/test_32x32.mat").write_bytes(b"abc"), "SciPy cannot read test_32x32.mat"),
        ("cub", lambda r: (r / "CUB_200_2011/classes.txt").write_text("1 001.Dodo\n"), "1 classes, but 200"),
        ("cub", lambda r: (r / "CUB_200_2011/images.txt").write_text("1\n"), "line 1: '1'; 2 words"),
        ("kitti", lambda r: shutil.rmtree(r / "kitti/mapping"), "train_rand.txt is missing .*devkit_object.zip"),
        ("ucf101", lambda r: shutil.rmtree(r / "ucf101/UCF-101-midframes/Archery"), "no frame of Archery/v_Archery"),
        ("clevr-counts", lambda r: (r / "CLEVR_v1.0/scenes/CLEVR_val_scenes.json").write_text("{}"), "'scenes'|scenes"),
        ("hateful-memes", lambda r: (r / "hateful_memes/dev.jsonl").write_text('{"img": 3}'), "dev.jsonl, line 1"),
        ("voc2007", lambda r: (r / "VOCdevkit/VOC2007/Annotations/000101.xml").write_text("<a"), "not complete: Parse"),
        ("birdsnap", lambda r: shutil.rmtree(r / "birdsnap/download"), "none of the images of images.txt is there"),
        ("gtsrb", lambda r: (r / "gtsrb/GT-final_test.csv").unlink(), "GT-final_test.csv is missing"),
        ("fer2013", lambda r: shutil.rmtree(r / "fer2013/test"), "a folder per emotion"),
        ("objectnet", lambda r: shutil.rmtree(r / "objectnet-1.0/images/banana"), "112 of 113 .*'banana' is missing"),
    ],
)
def test_mistakes_are_one_line(name, break_it, message, tmp_path):
    mistake(name, tmp_path, break_it, message)


def test_pcam_packed_or_broken(tmp_path):
    pytest.importorskip("h5py")
    WRITERS["pcam"](tmp_path)
    path = tmp_path / "pcam" / "camelyonpatch_level_2_split_test_x.h5"
    path.rename(f"{path}.gz")
    with pytest.raises(UserError, match="must be unpacked: gunzip"):
        open_classification("pcam", tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="an unpacked HDF5 file is expected"):
        open_classification("pcam", tmp_path)


def test_pcam_without_h5py(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    WRITERS["pcam"](tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UserError, match="needs h5py: pip install h5py"):
        open_classification("pcam", tmp_path)


# Splits and layouts in detail ----------------------------------------------------------------------------------


def test_fer2013_as_csv(tmp_path):
    count = fer2013_csv(tmp_path)
    dataset = open_classification("fer2013", tmp_path)
    assert len(dataset.images) == count and len(dataset.train()) == 7
    assert all(seen == label for seen, label in (shown(dataset.images, i) for i in range(count)))


def test_stl10_is_upright(tmp_path):
    WRITERS["stl10"](tmp_path)
    pixels = np.asarray(open_classification("stl10", tmp_path).images[3][0])
    assert (pixels[80:] == 255).all() and not (pixels[:80, 80:] == 255).all()


def test_objectnet_loses_its_border(tmp_path):
    WRITERS["objectnet"](tmp_path)
    image, _ = open_classification("objectnet", tmp_path).images[5]
    assert image.size == (16, 12) and len(image.getcolors()) == 1


def test_fifths_are_vtabs_sizes(tmp_path):
    """And the same everywhere, and disjoint; a list of test images replaces them."""
    WRITERS["eurosat"](tmp_path)
    dataset = open_classification("eurosat", tmp_path)
    test, train = ({images.name(i) for i in range(len(images))} for images in (dataset.images, dataset.train()))
    assert (len(test), len(train)) == (10, 40) and not test & train
    assert (CLASSIFICATION["eurosat"].images[0], CLASSIFICATION["resisc45"].images[0]) == (27_000 // 5, 31_500 // 5)
    (tmp_path / "eurosat" / "eurosat-test.txt").write_text("Forest_000.jpg\nRiver_004.jpg\n")
    listed = open_classification("eurosat", tmp_path)
    assert [listed.classnames[listed.images[i][1]] for i in range(2)] == ["forest", "river"]
    (tmp_path / "eurosat" / "eurosat-test.txt").write_text("Forest_999.jpg\n")
    with pytest.raises(UserError, match="1 images, 0 of them are there"):
        open_classification("eurosat", tmp_path)


def test_kitti_parts_do_not_share_videos(tmp_path):
    WRITERS["kitti"](tmp_path)
    dataset = open_classification("kitti", tmp_path)
    assert len(dataset.images) == 2 and len(dataset.train()) == 18
    order = np.random.default_rng(0).permutation(20) // 2  # each image's video
    tested = {order[int(dataset.images.paths[i].stem)] for i in range(2)}
    assert len(tested) == 1


# Lists, against second sources ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peer():
    from pathlib import Path

    folder = Path(builder.__file__).parent
    read = lambda name: json.loads((folder / f"en_{name}.json").read_text())  # noqa: E731
    return read("classnames"), read("zeroshot_classification_templates")


THEIR_NAMES = {"clevr-distance": "clevr_closest_object_distance", "kitti": "kitti_closest_vehicle_distance"}


@pytest.mark.parametrize(
    "name",
    ["country211", "gtsrb", "eurosat", "fer2013", "mnist", "pcam", "svhn", "flowers", "caltech101", *THEIR_NAMES],
)
def test_names_are_clip_benchmarks(name, peer):
    theirs = peer[0][THEIR_NAMES.get(name, name)]
    assert list(CLASSIFICATION[name].names) == [" ".join(one.split()) for one in theirs]  # "a  crocodile"


@pytest.mark.parametrize(
    "name",
    [
        "cifar10", "cifar100", "food101", "sun397", "cars", "dtd", "pets", "caltech101", "flowers", "mnist", "stl10",
        "eurosat", "gtsrb", "country211", "sst2", "voc2007", "fer2013", "svhn", "imagenet", *THEIR_NAMES,
    ],
)  # fmt: skip
def test_templates_are_clip_benchmarks(name, peer):
    theirs = peer[1][{"sst2": "renderedsst2", "imagenet": "imagenet1k", **THEIR_NAMES}.get(name, name)]
    assert {*CLASSIFICATION[name].templates} == {template.replace("{c}", "{}") for template in theirs}


def test_synsets(peer):
    """ImageNet's, and those of its subsets, against timm and clip-benchmark; names against its lists."""
    from pathlib import Path

    import timm.data

    assert folders("imagenet") == timm.data.ImageNetInfo().label_names() == builder.all_imagenet_wordnet_ids
    info = Path(timm.data.__file__).parent / "_info"
    for name in ("imagenet-r", "imagenet-a"):
        assert folders(name) == (info / f"{name.replace('-', '_')}_synsets.txt").read_text().split()
    assert len({*folders("imagenet-o")}) == 200 and {*folders("imagenet-o")} < {*folders("imagenet")}
    names = dict(zip(folders("imagenet"), peer[0]["imagenet1k"]))
    for name in ("imagenet-r", "imagenet-a", "imagenet-o"):
        assert list(CLASSIFICATION[name].names) == [names[synset] for synset in folders(name)]


def test_country_codes_are_iso_3166():
    """The folders are codes in their order; the prompts' names begin with what the code stands for, where both do."""
    codes = folders("country211")
    assert codes == sorted({*codes}) and len(codes) == 211
    names = dict(zip(codes, classes("country211")))
    assert [names[code] for code in ("AD", "CF", "DZ", "GB", "KP", "KR", "XK", "ZW")] == [
        "Andorra", "Central African Republic", "Algeria", "United Kingdom", "North Korea", "South Korea", "Kosovo",
        "Zimbabwe",
    ]  # fmt: skip


def test_every_list_is_right():
    sizes = {name: (len(record.names), len(record.templates)) for name, record in CLASSIFICATION.items()}
    assert sizes["birdsnap"] == (500, 1) and sizes["cub"] == (200, 1) and sizes["kinetics700"] == (700, 28)
    assert sizes["ucf101"] == (101, 48) and sizes["resisc45"] == (45, 18) and sizes["hateful-memes"] == (2, 1)
    assert sizes["objectnet"] == (113, 80) and sizes["clevr-counts"] == (8, 1)
    for name, record in CLASSIFICATION.items():
        check_templates(list(record.templates), name)
        doubled = 2 if name.startswith(("imagenet", "objectnet")) else 0  # "missile" and "sunglasses" are there twice
        assert len(record.names) - len({*record.names}) <= doubled
    assert templates("cub") == ["a photo of a {}, a type of bird."] == templates("birdsnap")
    assert {*SLIP_NAMES} <= {*CLASSIFICATION} and len(templates_of("imagenet")) == 80


# Of the sorted names and templates in SLIP's labels.json and templates.json, which the ALIP release's agree with.
DIGESTS = {
    "birdsnap": ("b03d9d481162", "f3126b8375a9"),
    "cub": ("6b31d0f383c3", "f3126b8375a9"),
    "kinetics700": ("a34c9fed41f5", "7ff4cc3590e0"),
    "ucf101": ("4c5f54cb419a", "db238e0b2b87"),
    "resisc45": ("3c2177013901", "ddfe50c416a8"),
    "hateful-memes": ("a7af6b383752", "16a7fa63385b"),
    "sst2": ("2e61aa755804", "9034019e8a14"),
    "stl10": ("08b234ce7b11", "c97a3d1ad581"),
    "voc2007": ("7d877f185c80", "e8e367e769f8"),
}


@pytest.mark.parametrize("name", DIGESTS)
def test_lists_are_the_releases(name):
    digests = [
        hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12] for lines in (classes(name), templates(name))
    ]
    assert tuple(digests) == DIGESTS[name]


def test_given_names_in_another_order_are_refused(tmp_path):
    """SLIP's labels.json has kitti's names in the order of its own folders."""
    WRITERS["kitti"](tmp_path)
    own = classes("kitti")
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"kitti_distance": [own[2], own[1], own[0], own[3]]}))
    with pytest.raises(UserError, match="in another order than its classes"):
        open_classification("kitti", tmp_path, classnames=file)
    file.write_text(json.dumps({"kitti_distance": own}))
    assert open_classification("kitti", tmp_path, classnames=file).classnames == own


def test_table_of_the_documentation():
    """Every dataset has a row with its own numbers."""
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    rows = {line.split("`")[1]: [cell.strip() for cell in line.split(" | ")] for line in page.splitlines()
            if line.startswith("| `")}  # fmt: skip
    for name, record in CLASSIFICATION.items():
        images = f"{record.images[0]:,}" if record.images else "not fixed"
        assert rows[name][1:4] == [images, f"{len(record.names):,}", str(len(record.templates))], name
        assert rows[name][5].replace("\\*", "*") == record.layout
