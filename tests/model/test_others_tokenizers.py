"""Models of others with a tokenizer or towers of their own: SigLIP's form, Hugging Face's folders."""

import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from alip import checkpoint, tokens
from alip.checkpoint import export
from alip.errors import UserError
from alip.model import create_model
from tests.helpers.others_models import HALF, tiny

TEXTS = ["", "a red apple", "Two cats & a dog!", "word " * 100]


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
