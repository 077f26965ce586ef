"""Weights of others: open_clip's tags, hub repositories, shards, TorchScript archives, tokenizers of their own."""

import copy
import json
import warnings

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from alip import checkpoint, tokens
from alip.checkpoint import export
from alip.errors import UserError
from alip.model import create_model
from alip.model.torchscript import is_torchscript, read_torchscript

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1},
}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear", "resize_mode": "squash"}
TEXTS = ["", "a red apple", "Two cats & a dog!", "word " * 100]


def tiny(**options):
    torch.manual_seed(0)
    return create_model(copy.deepcopy({"model_cfg": TINY | options, "preprocess_cfg": HALF})).eval()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


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


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and no network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


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


class Archive(torch.nn.Module):
    """A model as OpenAI's archives hold it: fp16 weights, with three numbers as buffers and a mask as an attribute."""

    def __init__(self, model):
        super().__init__()
        for name, value in model.state_dict().items():
            owner, _, last = name.rpartition(".")
            module = self
            for part in owner.split(".") if owner else ():
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, torch.nn.Parameter(value.half(), requires_grad=False))
        for name, number in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(number))

    def forward(self, x: torch.Tensor):
        return x


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("ViT-S-32-alt").eval()
    path = tmp_path_factory.mktemp("archive") / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Archive(model)).save(path)
    return path, model


def test_torchscript_archive_of_openai(archive):
    path, model = archive
    assert is_torchscript(path)
    loaded = checkpoint.load_model(path)
    assert loaded.config["model_cfg"]["quick_gelu"] is True, "all of OpenAI's models have it"
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float()), name
    with pytest.raises(UserError, match="trained with QuickGELU"):
        checkpoint.load_weights(create_model("ViT-S-32-alt"), path)


def test_the_same_tensors_as_torch_jit(archive):
    path, _ = archive
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.jit.load(path).state_dict()
    ours = read_torchscript(path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) and ours[name].dtype == value.dtype for name, value in theirs.items())


def test_code_in_an_archive_does_not_run(tmp_path, monkeypatch):
    import pickle
    import zipfile

    class Bomb:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'exploded'}",)

    for number, content in enumerate(
        (pickle.dumps(Bomb()), b"cposix\nsystem\n(S'true'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.")
    ):
        path = tmp_path / f"{number}.pt"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", content)
            file.writestr("a/constants.pkl", b"")
        with pytest.raises(UserError, match=r"TorchScript archive whose tensors cannot be read \(data\.pkl asks for"):
            checkpoint.read_weights(path)
    assert not (tmp_path / "exploded").exists()


def tiny_tokenizer(folder, size=200):
    """A Hugging Face tokenizer of whole words, padded with id 1."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", "a", "red", "apple", *map(str, range(size - 5))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)


SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 200,
        "hf_tokenizer_name": "no/where",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 64,
        "heads": 2,
        "layers": 1,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


@pytest.fixture
def siglip(tmp_path):
    """An open_clip folder of a small model of SigLIP's form, with its tokenizer."""
    torch.manual_seed(0)
    model = create_model({"model_cfg": SIGLIP, "preprocess_cfg": HALF}).eval()
    folder = tmp_path / "siglip"
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": SIGLIP, "preprocess_cfg": HALF}))
    tiny_tokenizer(folder)
    return folder


def test_siglip_folder_of_open_clip_is_evaluated_as_open_clip_does(siglip):
    model = checkpoint.load_model(siglip)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{siglip}")
    texts = ["A red apple!", "3 apple 4"]
    rows = open_clip.get_tokenizer(f"local-dir:{siglip}")(texts)
    assert torch.equal(model.tokenizer(texts), rows) and rows.shape == (2, 16)
    image = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(rows), theirs.eval().encode_text(rows))
        torch.testing.assert_close(model.encode_image(image), theirs.encode_image(image))
    noise = Image.effect_noise((90, 200), 90).convert("RGB")
    assert torch.equal(model.preprocess()(noise), preprocess(noise))
    assert model.text_format.tokenizer == "no/where" and not model.text_format.is_clip


def test_a_model_with_another_tokenizer_is_neither_imported_nor_exported(siglip, tmp_path):
    with pytest.raises(UserError, match="runs hold CLIP's own: evaluate it as it is"):
        checkpoint.save.import_weights(siglip, tmp_path / "run")
    with pytest.raises(UserError, match="only CLIP's own is exported"):
        export.export(checkpoint.load_model(siglip), "open_clip", tmp_path / "out")


def test_a_tokenizer_that_is_not_here_is_reported_before_anything_is_encoded(siglip, hub_cache):
    for path in siglip.glob("*token*"):
        path.unlink()
    with pytest.raises(UserError, match="tokenizer is Hugging Face's no/where, which is not at hand"):
        checkpoint.load_model(siglip)


def test_a_tokenizer_of_another_model_is_reported(siglip):
    tiny_tokenizer(siglip, 300)
    model = checkpoint.load_model(siglip)
    with pytest.raises(UserError, match="ids up to 204, but the model's vocabulary has 200"):
        model.tokenizer(["199"])


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_folder_of_hugging_face_is_refused_with_the_way_out(kind, tmp_path):
    save_file({"vision_model.head.probe": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError, match=r"a SigLIP model in Hugging Face's form.*open_clip's release"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize("end", [7, 49407])
def test_hugging_face_pools_at_its_own_end_token(end, tmp_path):
    transformers = pytest.importorskip("transformers")
    export.export(tiny(), "hf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["text_config"]["eos_token_id"] = end
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    model = checkpoint.load_model(tmp_path / "hf")
    rows = tokens.tokenize(TEXTS)
    rows[:, 1] = 7
    with torch.no_grad():
        found = theirs.get_text_features(input_ids=rows)
        found = getattr(found, "pooler_output", found)
        torch.testing.assert_close(model.encode_text(rows), found, rtol=0, atol=1e-5)


def test_towers_described_under_their_older_names(tmp_path):
    """`text_config_dict` replaces `text_config`, with CLIPConfig's defaults for what it leaves out."""
    transformers = pytest.importorskip("transformers")
    export.export(tiny(), "hf", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    for name in ("text_config", "vision_config"):
        config[f"{name}_dict"] = {key: value for key, value in config[name].items() if key != "hidden_act"}
    path.write_text(json.dumps(config))
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    model, image = checkpoint.load_model(tmp_path / "hf"), torch.randn(2, 3, 32, 32)
    assert model.config["model_cfg"]["quick_gelu"]
    with torch.no_grad():
        found = theirs.get_image_features(pixel_values=image)
        found = getattr(found, "pooler_output", found)
        torch.testing.assert_close(model.encode_image(image), found, rtol=0, atol=1e-5)


def test_hugging_face_folder_with_a_vocabulary_of_its_own(tmp_path):
    export.export(tiny(), "hf", tmp_path / "hf")
    path = tmp_path / "hf" / "vocab.json"
    words = json.loads(path.read_text())
    words["a</w>"], words["b</w>"] = words["b</w>"], words["a</w>"]
    path.write_text(json.dumps(words))
    (tmp_path / "hf" / "tokenizer.json").unlink()
    model = checkpoint.load_model(tmp_path / "hf")
    assert not model.text_format.is_clip
    rows = model.tokenizer(["a b"])
    assert rows[0, 1:3].tolist() == tokens.tokenize(["b a"])[0, 1:3].tolist()


def test_tensors_that_config_json_does_not_know_are_reported(tmp_path):
    export.export(tiny(), "hf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 0
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="num_hidden_layers: must be at least 1"):
        checkpoint.load_model(tmp_path / "hf")
