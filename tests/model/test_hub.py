"""--cache-dir: where downloads go, and are found again."""

import os

import pytest

from alip.model import hub, pretrained


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE)
    monkeypatch.setattr(hub, "_cache_folder", None)
    for name in ("HF_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, os.environ.get(name, "unset"))
    hub.use_cache(tmp_path)
    return tmp_path


def test_files_are_found_in_the_folder(own_cache):
    repository = own_cache / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "config.json").write_text("{}")
    assert hub.Repository("org/name").file("config.json") == repository / "snapshots" / "abc" / "config.json"
    assert os.environ["HF_HUB_CACHE"] == os.environ["TORCH_HOME"] == str(own_cache)


def test_open_clips_downloads_go_there(own_cache, monkeypatch):
    import open_clip

    asked = {}

    def download(about, cache_dir=None):
        asked["folder"] = cache_dir
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    with pytest.raises(pretrained.UserError, match="no network"):
        pretrained.read_tag("ViT-B-32", "openai")
    assert asked["folder"] == str(own_cache)
