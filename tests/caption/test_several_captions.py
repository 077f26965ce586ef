"""`--captions-per-image K`: seeds by (seed, key, k), whatever the batches, and after an interruption."""

import json

import pytest

from alip.build.caption_files import read_entries
from alip.build.sources import Sample
from alip.caption.existing import ExistingCaptions
from alip.caption.pipeline import main
from alip.caption.work import caption_seed
from alip.errors import UserError
from tests.helpers import tiny_captioners as tiny
from tests.helpers.captioning import numbered, write_captioner, write_tar

SEEDED = """
class Seeded:
    takes_seeds = True

    def caption(self, batch, seeds=None):
        return ["dog" if seed % 7 == 0 else f"seed {seed}" for seed in seeds]

def create_captioner(device, options):
    return Seeded()
"""


@pytest.fixture
def folder(tmp_path):
    """Twelve images and a captioner that writes its seeds."""
    write_tar(tmp_path / "a.tar", numbered(0, 12))
    write_captioner(tmp_path, SEEDED)
    return tmp_path


def arguments(folder, *more, output="c.jsonl"):
    given = ["--input", folder / "a.tar", "--output", folder / output, "--captioner", f"file:{folder / 'sizes.py'}"]
    return [*map(str, given), "--workers", "0", "--captions-per-image", "3", "--seed", "4", *map(str, more)]


def test_each_caption_has_a_seed_of_its_own(folder):
    assert main(arguments(folder, "--batch-size", 5)) == 0
    entries = dict(read_entries(str(folder / "c.jsonl")))
    assert list(entries) == [f"k{n:04d}" for n in range(12)]
    for key, captions in entries.items():
        seeds = [caption_seed(4, key, k) for k in range(3)]
        texts = ["dog" if seed % 7 == 0 else f"seed {seed}" for seed in seeds]
        assert captions == list(dict.fromkeys(texts))  # the same caption twice is one
    assert main(arguments(folder, "--batch-size", 1, output="d.jsonl")) == 0
    assert (folder / "c.jsonl").read_bytes() == (folder / "d.jsonl").read_bytes()
    settings = json.loads((folder / "c-run.json").read_text())["settings"]
    assert settings["captions_per_image"] == 3 and settings["seed"] == 4
    with pytest.raises(UserError, match="seed was 4, is 5"):
        main(arguments(folder, "--seed", 5))


def test_an_interrupted_run_resumes_with_the_same_captions(folder):
    whole = write_tar(folder / "a.tar", numbered(0, 12))
    assert main(arguments(folder, "--limit", 5)) == 0
    assert main(arguments(folder)) == 0
    assert main(arguments(folder, output="whole.jsonl")) == 0 and whole.exists()
    assert (folder / "c.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()


def test_empty_captions_are_left_out_and_none_is_a_failure(folder):
    text = SEEDED.replace('"dog" if seed % 7 == 0', '" " if seed % 2 == 0')
    write_captioner(folder, text)
    status = main(arguments(folder))
    entries = dict(read_entries(str(folder / "c.jsonl")))
    odd = {f"k{n:04d}": sum(caption_seed(4, f"k{n:04d}", k) % 2 for k in range(3)) for n in range(12)}
    assert {key: len(captions) for key, captions in entries.items()} == {key: n for key, n in odd.items() if n}
    assert status == (0 if all(odd.values()) else 1)


def test_a_model_samples(folder):
    tiny.save_blip(folder / "blip")
    captioner = ["--captioner", str(folder / "blip"), "--max-new-tokens", "8", "--precision", "fp32"]
    assert main(arguments(folder, *captioner, "--batch-size", 12)) == 0
    assert main(arguments(folder, *captioner, "--batch-size", 2, output="d.jsonl")) == 0
    entries = dict(read_entries(str(folder / "c.jsonl")))
    assert sum(len(set(captions)) for captions in entries.values()) > 24
    same = sum(captions == entries[key] for key, captions in read_entries(str(folder / "d.jsonl")))
    assert same >= 11  # (rounding depends on the batch, and could decide between two words)
    with pytest.raises(UserError, match="use --num-beams 1"):
        main(arguments(folder, *captioner, "--num-beams", 3))


def test_existing_captions_are_several_where_asked_for(folder, monkeypatch):
    """None is dropped in silence: without the flag a file with several is refused; and what changes is taken over."""
    monkeypatch.setattr("alip.caption.pipeline.read_pairs", lambda *_: [])  # no figure
    rows = [("k0000", "a"), ("k0000", "b"), ("k0000", "a"), ("k0001", "c")]
    lists = [{"key": "k0000", "captions": ["a", "b"]}, {"key": "k0001", "caption": "c"}]
    by_rows, by_lists = folder / "rows.tsv", folder / "lists.jsonl"
    by_rows.write_text("".join(f"{key}\t{text}\n" for key, text in rows))
    by_lists.write_text("".join(json.dumps(entry) + "\n" for entry in lists))
    for path in (by_rows, by_lists):
        with pytest.raises(UserError, match=r"several captions of 'k0000': give --captions-per-image K"):
            ExistingCaptions(path)
        several = ExistingCaptions(path, 4)
        assert [several.captions(Sample(key, "")) for key in ("k0000", "k0001", "k")] == [["a", "b"], ["c"], []]
        assert several.captions(Sample("k0000#2", "", image_key="k0000")) == ["a", "b"]
        assert ExistingCaptions(path, 1).captions(Sample("k0000", "")) == ["a"]

    given = ["--captioner", f"existing:{by_rows}", "--limit", "2"]
    assert main(arguments(folder, *given)) == 0
    assert dict(read_entries(str(folder / "c.jsonl"))) == {"k0000": ["a", "b"], "k0001": ["c"]}
    by_rows.write_text("".join(f"{key}\t{text.upper()}\n" for key, text in rows[1:]))
    assert main(arguments(folder, *given)) == 0
    assert dict(read_entries(str(folder / "c.jsonl"))) == {"k0000": ["B", "A"], "k0001": ["C"]}


@pytest.mark.parametrize(
    "captioner, words",
    [
        ("file:sizes.py", ["--prompt", "a photo of"]),
        ("file:sizes.py", ["--num-beams", "5"]),
        ("file:sizes.py", ["--temperature", "0.7"]),
        ("file:sizes.py", ["--precision", "fp32"]),
        ("existing:c.tsv", ["--max-new-tokens", "3"]),
        ("existing:c.tsv", ["--sample"]),
    ],
)
def test_flags_that_a_captioner_cannot_use(folder, captioner, words):
    given = ["--input", str(folder / "a.tar"), "--output", str(folder / "c.jsonl"), "--captioner", captioner]
    with pytest.raises(UserError, match=f"--captioner {captioner} does not use {words[0]}: leave that out"):
        main([*given, *words])


def test_a_captioner_that_repeats_itself_is_named_once(folder, capfd):
    write_captioner(folder, SEEDED.replace("takes_seeds = True", "").replace('"dog" if', '"dog" if True or'))
    text = (folder / "sizes.py").read_text().replace("for seed in seeds", "for seed in batch")
    (folder / "sizes.py").write_text(text)
    assert main(arguments(folder, "--batch-size", 5)) == 0
    assert capfd.readouterr().err.count("gives each image the same caption 3 times") == 1


def test_an_option_that_a_captioner_file_refuses(folder):
    write_captioner(folder, "def create_captioner(device, options):\n    int(options['top'])\n")
    with pytest.raises(UserError, match="create_captioner refused --option: invalid literal"):
        main([*arguments(folder), "--option", "top=x"])
