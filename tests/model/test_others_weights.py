"""Weights of others: open_clip's tags, folders, hub repositories, shards."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from alip import checkpoint
from alip.checkpoint import export
from alip.errors import UserError
from alip.model import create_model
from tests.helpers.others_models import HALF, TINY, same, tiny


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """open_clip's downloads come from files made here, by the name of the tag's file or repository."""
    made = {}

    def download(about, **_):
        (path,) = [path for key, path in made.items() if key in about["url"] + about["hf_hub"]]
        return str(path)

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    return made


@pytest.mark.parametrize(
    ("name", "tag", "quick"),
    [("ViT-B-32", "openai", True), ("ViT-B-32-quickgelu", "openai", True), ("ViT-B-32", "laion2b_s34b_b79k", False)],
)
def test_a_tag_brings_what_it_was_trained_with(name, tag, quick, downloads, tmp_path):
    torch.manual_seed(0)
    save_file(create_model("ViT-B-32").state_dict(), tmp_path / "w.safetensors")
    downloads[""] = tmp_path / "w.safetensors"
    loaded = checkpoint.load_model(f"{name}:{tag}")
    assert loaded.metadata["source"] == f"{name}:{tag}"
    for model in (create_model(name, pretrained=tag), loaded):
        about, config = open_clip.get_pretrained_cfg(name, tag), model.config
        assert config["model_cfg"].get("quick_gelu", False) == quick
        assert isinstance(model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU) == quick
        for key in ("mean", "std"):
            assert config["preprocess_cfg"][key] == list(about[key])


def test_a_tags_mean_and_resizing_are_not_clips(downloads, tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-S-32-alt", {"own": HALF | {"url": "u", "hf_hub": ""}})
    save_file(create_model("ViT-S-32-alt").state_dict(), tmp_path / "w.safetensors")
    downloads["u"] = tmp_path / "w.safetensors"
    found = checkpoint.load_model("ViT-S-32-alt:own").config["preprocess_cfg"]
    assert {key: found[key] for key in HALF} == HALF and found["size"] == [224, 224]


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B/32:laion2b", "ViT-B-32:"])
def test_a_model_without_one_of_its_tags_is_answered_with_them(name):
    with pytest.raises(UserError, match=r"^ViT-B.*: neither a file nor .*ViT-B-32: openai, .*laion2b_s34b_b79k"):
        checkpoint.load_model(name)


def test_quick_gelu_of_the_weights_and_of_the_model(tmp_path):
    model = tiny(quick_gelu=True)
    export.export(model, "open_clip", tmp_path / "quick")
    adopted = create_model(TINY, pretrained=tmp_path / "quick")
    assert adopted.config["model_cfg"]["quick_gelu"] and adopted.config["preprocess_cfg"]["resize_mode"] == "squash"
    with pytest.raises(UserError, match="trained with QuickGELU, and the model has plain GELU"):
        checkpoint.load_weights(create_model(TINY), tmp_path / "quick")
    export.export(tiny(), "open_clip", tmp_path / "plain")
    with pytest.raises(UserError, match="trained with plain GELU"):
        create_model(TINY, pretrained=tmp_path / "plain", quick_gelu=True)


@pytest.mark.parametrize("form", ["open_clip", "hf"])
def test_a_folders_file_by_its_path_has_the_folders_description(form, tmp_path, capsys):
    model = tiny(quick_gelu=True)
    export.export(model, form, tmp_path / "out")
    loaded = checkpoint.load_model(next((tmp_path / "out").glob("*.safetensors")))
    assert loaded.config["model_cfg"]["quick_gelu"] and loaded.config["preprocess_cfg"]["resize_mode"] == "squash"
    same(loaded, model)
    assert capsys.readouterr().out == ""


def test_a_guess_by_shapes_is_said(tmp_path, capsys):
    save_file(create_model("ViT-S-32").state_dict(), tmp_path / "w.safetensors")
    checkpoint.load_model(tmp_path / "w.safetensors")
    assert capsys.readouterr().out == ""  # there is one such model
    save_file(create_model("RN50").state_dict(), tmp_path / "w.safetensors")
    checkpoint.load_model(tmp_path / "w.safetensors")
    assert "does not name its model: read as RN50; RN50-quickgelu fit too (--model NAME)" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["open_clip", "hf"])
def test_sharded_safetensors(form, tmp_path):
    pytest.importorskip("transformers")
    model = tiny()
    export.export(model, form, tmp_path / "whole")
    folder = sharded(tmp_path / "whole")
    loaded = checkpoint.load_model(folder)
    same(loaded, model)
    assert len(loaded.metadata["fingerprint"]) == 12
    index = next(folder.glob("*.index.json"))
    if form == "open_clip":
        same(checkpoint.load_model(index, TINY), model)


def sharded(folder):
    """Cuts a folder's safetensors file in three, as transformers and open_clip name them."""
    (whole,) = folder.glob("*.safetensors")
    state = load_file(whole)
    weight_map = {}
    for number in range(3):
        part = dict(list(state.items())[number::3])
        name = f"{whole.stem}-{number + 1:05}-of-00003.safetensors"
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / f"{whole.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    whole.unlink()
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, index: next(folder.glob("*-00002-*")).unlink(), "no such file"),
        (lambda _, index: index["weight_map"].update(x=index["weight_map"]["ln_final.bias"]), "tensor x is not in"),
        (lambda _, index: index["weight_map"].update(x="../secret.safetensors"), "weight_map.x"),
        (lambda _, index: index["weight_map"].update(x="model.safetensors.index.json"), "weight_map.x"),
        (lambda _, index: index.update(weight_map=[]), "weight_map: must be object"),
        (lambda _, index: index.clear(), "weight_map missing"),
    ],
)
def test_broken_shards_are_reported(change, message, tmp_path):
    export.export(tiny(), "open_clip", tmp_path / "whole")
    folder = sharded(tmp_path / "whole")
    path = next(folder.glob("*.index.json"))
    index = json.loads(path.read_text())
    change(folder, index)
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        checkpoint.load_model(folder)


def put(cache, name, folder):
    """A model folder as the cache would hold it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots").mkdir()
    folder.rename(place / "snapshots" / commit)


@pytest.mark.parametrize("form", ["open_clip", "hf", "sharded"])
def test_repositories_of_the_hub(form, hub_cache, tmp_path):
    pytest.importorskip("transformers")
    model = tiny()
    folder = tmp_path / "model"
    export.export(model, "open_clip" if form == "open_clip" else "hf", folder)
    if form == "sharded":
        sharded(folder)
    put(hub_cache, "some/model", folder)
    for name in ("hf-hub:some/model", "some/model", "hf-hub:some/model@main"):
        loaded = checkpoint.load_model(name)
        same(loaded, model)
        assert loaded.metadata["source"] == name
        assert loaded.config["preprocess_cfg"]["resize_mode"] == "squash"
    same(create_model(TINY, pretrained="hf-hub:some/model"), model)


def test_hub_names_that_are_not_here(hub_cache, tmp_path):
    with pytest.raises(UserError, match="write hf-hub:some/other to download it"):
        checkpoint.load_model("some/other")
    with pytest.raises(UserError, match="the hub could not be reached"):
        checkpoint.load_model("hf-hub:some/other")
    with pytest.raises(UserError, match="no repository name"):
        checkpoint.load_model("hf-hub:a/b/c")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("")
    put(hub_cache, "some/empty", tmp_path / "empty")
    with pytest.raises(UserError, match=r"neither open_clip_config\.json nor config\.json"):
        checkpoint.load_model("some/empty")
