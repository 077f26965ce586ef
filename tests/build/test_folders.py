"""Folders: every image is read or named, also behind links, and a folder that changes is another input."""

import os

import pytest

from alip.build.open_source import open_source
from alip.errors import UserError
from tests.helpers.shards import build_shards, encoded, make_image

JPEG = encoded(make_image(1))


def fill(folder, names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(JPEG)
        (folder / name).with_suffix(".txt").write_text(f"text of {name}\n")


def read(folder):
    samples = list(open_source(str(folder), "folder"))
    return [s.key for s in samples if not s.error], [s.error for s in samples if s.error]


def test_images_of_other_formats_are_named(tmp_path):
    fill(tmp_path, ["a.jpg", "b.heic", "c.avif", "d.svg", "e.JFIF"])
    keys, errors = read(tmp_path)
    assert keys == ["a", "e"] and errors == [f"unsupported-format: {name}" for name in ("b.heic", "c.avif", "d.svg")]


def test_links_to_folders_are_followed_save_loops(tmp_path):
    fill(tmp_path / "elsewhere", ["x.jpg"])
    fill(tmp_path / "in", ["a.jpg", "deep/b.jpg"])
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "deep" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone").symlink_to(tmp_path / "nowhere")
    keys, errors = read(tmp_path / "in")
    assert keys == ["a", "deep/b", "link/x"]
    assert len(errors) == 1 and errors[0].startswith("broken-input") and "loop" in errors[0]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    fill(tmp_path, ["a.jpg", "closed/b.jpg"])
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    keys, errors = read(tmp_path)
    assert keys == ["a"] and errors == [f"broken-input: {tmp_path}/closed cannot be listed: Permission denied"]


def test_texts_beside_an_image(tmp_path):
    fill(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"text": "better"}')
    (tmp_path / "b.json").write_text("[" * 100_000)
    (tmp_path / "c.txt").unlink()
    os.mkfifo(tmp_path / "c.txt")
    (tmp_path / "d.txt").write_text("\n two\nlines \n")
    samples = list(open_source(str(tmp_path)))
    assert samples[0].text == "better" and samples[3].text == " two\nlines "
    assert samples[1].error.startswith("bad-text") and samples[2].error.startswith("bad-text")


def test_a_folder_that_has_changed_is_another_input(tmp_path):
    fill(tmp_path / "in", ["a.jpg", "b.jpg"])
    first = open_source(str(tmp_path / "in")).describe()
    assert open_source(str(tmp_path / "in")).describe() == first
    (tmp_path / "in" / "notes.md").write_text("no image")
    assert open_source(str(tmp_path / "in")).describe() == first
    build_shards(tmp_path / "in", tmp_path / "set", policy=policy())
    fill(tmp_path / "in", ["aa.jpg"])
    assert open_source(str(tmp_path / "in")).describe() != first
    with pytest.raises(UserError, match="another input"):
        build_shards(tmp_path / "in", tmp_path / "set", policy=policy())


def policy():
    from alip.build.prepare import Policy

    return Policy(missing_caption="use-text")
