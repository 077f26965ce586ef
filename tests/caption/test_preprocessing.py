import os
from pathlib import Path

import pytest

from alip.build.sources import ByteRange, Sample
from alip.build.text_hash import digest
from alip.caption.preprocessing import Preprocessing, feed, in_background
from tests.helpers.captioning import png, write_captioner

KILLER = """
import os

def prepare(image):
    if image.size == (13, 13):
        os._exit(9)
    if image.size == (14, 14):
        raise ValueError("fourteen")
    return image.size

class Killer:
    def __init__(self):
        self.prepare = prepare

    def caption(self, batch):
        return [str(size) for size in batch]

def create_captioner(device, options):
    return Killer()
"""


def samples(tmp_path):
    """good, unreadable, broken, good, no image, bad text (its image is fine)."""
    (tmp_path / "good.png").write_bytes(png(1))
    return [
        Sample("a", "here", png(1)),
        Sample("b", "here", ByteRange(str(tmp_path / "gone.png"))),
        Sample("c", "here", png(2)[:60]),
        Sample("d", "here", ByteRange(str(tmp_path / "good.png"))),
        Sample("e", "here"),
        Sample("f", "here", png(3), error="bad-text: no JSON"),
        Sample("g", "here", png(3), error="broken-input: the rest cannot be read"),
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_comes_back_in_order(tmp_path, workers):
    given = [(sample, None) for sample in samples(tmp_path)]
    got = list(feed(given, Preprocessing(), workers, ahead=3))
    assert [sample.key for sample, _ in got] == list("abcdefg")
    reasons = {sample.key: prepared.reason for sample, prepared in got}
    assert reasons == {
        "a": None,
        "b": "unreadable",
        "c": reasons["c"],
        "d": None,
        "e": "no-image",
        "f": None,
        "g": "broken-input",
    }
    assert reasons["c"] in ("truncated", "broken")
    assert all((prepared.content is not None) == (prepared.reason is None) for _, prepared in got)
    assert got[0][1].image == digest(png(1))


def test_an_unchanged_image_is_not_decoded():
    broken = png(2)[:60]
    given = [(Sample("a", "", broken), digest(broken)), (Sample("b", "", broken), digest(b"other"))]
    (_, same), (_, changed) = feed(given, Preprocessing(), 0, 2)
    assert same.unchanged and same.reason is None
    assert not changed.unchanged and changed.reason


def test_an_image_that_kills_its_worker_is_named_and_the_others_go_on(tmp_path):
    from alip.caption.choice import CaptionerChoice, open_captioner

    path = write_captioner(tmp_path, KILLER)
    captioner = open_captioner(CaptionerChoice(f"file:{path}"), None)
    preprocessing = Preprocessing.of(captioner, str(path), 10**6)
    sizes = [(10, 10), (11, 11), (13, 13), (12, 12), (14, 14), (15, 15)]
    given = [(Sample(str(side), "", png(side, (side, side))), None) for side, _ in sizes]
    got = {sample.key: prepared for sample, prepared in feed(given, preprocessing, 2, ahead=6)}
    assert {key: prepared.reason for key, prepared in got.items()} == {
        **dict.fromkeys(["10", "11", "12", "15"]),
        "13": "killed-its-worker",
        "14": "not-prepared",
    }
    assert got["15"].content == (15, 15)
    assert "fourteen" in got["14"].detail


def test_background_gives_the_same_items_and_its_errors():
    def items(count):
        yield from range(count)
        if count == 7:
            raise KeyError("seven")

    assert list(in_background(items(50), 3)) == list(range(50))
    got = []
    with pytest.raises(KeyError, match="seven"):
        got.extend(in_background(items(7), 3))


def test_background_stops_when_nobody_wants_more(tmp_path):
    closed = tmp_path / "closed"

    def items():
        try:
            while True:
                yield 1
        finally:
            Path(closed).write_text(str(os.getpid()))

    fetched = in_background(items(), 2)
    assert next(fetched) == 1
    fetched.close()
    assert closed.exists()
