"""Exported folders load in open_clip and transformers, and say what they are."""

import copy
import json
import re

import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from alip import checkpoint, tokens
from alip.checkpoint import __main__ as commands
from alip.checkpoint import export, save
from alip.errors import UserError
from alip.model import create_model
from alip.model.huggingface import from_huggingface, to_huggingface
from alip.model.weights import weights_hash

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
RESNET = CONFIG | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}
TEXTS = ["", "a red apple", "Two cats & a dog!", "word " * 100]


def random_model(config, **options):
    torch.manual_seed(0)
    model = create_model(config, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "conv" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        model.logit_scale.fill_(3.0)
    return model


@pytest.fixture
def run(tmp_path):
    model = random_model(CONFIG, quick_gelu=True)
    folder = tmp_path / "RUN"
    content = {"format": "alip-checkpoint", "version": 1, "model": model.state_dict(), "ema": None}
    content |= {"model_config": model.config, "step": 7, "samples": 448}
    checkpoint.atomic_save(content, folder / "checkpoints" / "step-00000007.pt")
    about = {
        "arguments": {"lr": 0.001, "output": "secret-folder", "epochs": 32, "steps": 7, "check": False},
        "world_size": 2,
        "data": {"name": "pairs", "samples": 64},
    }
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "results").mkdir()
    # As version 0.1 wrote them: of these weights, of other ones in the same folder, and without a hash.
    entries = [
        {"kind": "retrieval", "dataset": name, "protocol": "field", "numbers": {"image_to_text_R@1": 12.5}, **weights}
        for name, weights in (
            ("tiny", {"weights_hash": weights_hash(model)}),
            ("of-another-step", {"weights_hash": "0" * 16}),
            ("of-unknown-weights", {}),
        )
    ]
    (folder / "results" / "results.json").write_text(json.dumps({"format": "alip-results", "entries": entries}))
    return folder


def command(*words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["alip.checkpoint", *map(str, words)])
    commands.main()


def image_of_noise():
    return Image.effect_noise((50, 40), 90).convert("RGB")


def test_open_clip_loads_it(run, tmp_path, monkeypatch, capsys):
    command("export", "--checkpoint", run, "--to", "open_clip", "--output", tmp_path / "out", monkeypatch=monkeypatch)
    assert "features equal" in capsys.readouterr().out
    name = f"local-dir:{tmp_path / 'out'}"
    theirs, _, preprocess = open_clip.create_model_and_transforms(name)
    model, rows, image = checkpoint.load_model(run), tokens.tokenize(TEXTS), image_of_noise()
    assert torch.equal(open_clip.get_tokenizer(name)(TEXTS), rows)
    assert torch.equal(preprocess(image), model.preprocess()(image))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval().encode_text(rows), model.encode_text(rows), rtol=0, atol=1e-5)


def test_transformers_loads_it(run, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    command("export", "--checkpoint", run, "--to", "hf", "--output", tmp_path / "out", monkeypatch=monkeypatch)
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
    model, image = checkpoint.load_model(run), image_of_noise()
    inputs = processor(text=TEXTS, images=image, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        out = theirs(**inputs)
        text = model.encode_text(tokens.tokenize(TEXTS), normalize=True)
        pixels = model.encode_image(model.preprocess()(image)[None], normalize=True)
    torch.testing.assert_close(out.text_embeds, text, rtol=0, atol=1e-5)
    assert F.cosine_similarity(out.image_embeds, pixels).item() > 0.999  # two libraries' resizing of one image
    assert theirs.logit_scale.item() == 3.0


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_files_of_transformers_4_are_there_too(mode, tmp_path):
    """The slow tokenizer's and the image processor's files, which transformers before version 5 reads."""
    transformers = pytest.importorskip("transformers")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": mode}
    model = random_model({"model_cfg": CONFIG, "preprocess_cfg": preprocess})
    export.export(model, "hf", tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    assert not (tmp_path / "out" / "processor_config.json").exists(), "version 4 fails on version 5's"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "out")
    rows = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    ours = tokens.tokenize(TEXTS)
    for a, b, length in zip(rows, ours, tokens.lengths(ours)):
        assert torch.equal(a[:length], b[:length])
    special = json.loads((tmp_path / "out" / "special_tokens_map.json").read_text())
    assert special["eos_token"] == special["pad_token"] == "<|endoftext|>"
    noise = image_of_noise()
    pixels = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "out")(noise, return_tensors="pt").pixel_values
    assert (pixels[0] - model.preprocess()(noise)).abs().median() < 0.02


def test_model_card_has_data_recipe_results_and_licence(run, tmp_path):
    model = checkpoint.load_model(run)
    export.export(model, "open_clip", tmp_path / "out", run=run, metadata=model.metadata, license_name="mit")
    card = re.sub(" +", " ", (tmp_path / "out" / "README.md").read_text())
    for words in ("license: mit", "pairs", "| lr | 0.001 |", "| tiny | retrieval (field) | image_to_text_R@1 | 12.50 |",
                  "after 7 optimizer steps (448 samples)", model.metadata["fingerprint"], "2 rank(s)"):  # fmt: skip
        assert words in card
    for words in ("secret-folder", "of-another-step", "of-unknown-weights", "epochs", "check |"):
        assert words not in card


@pytest.mark.parametrize("form", ["open_clip", "hf"])
def test_import_brings_it_back(run, tmp_path, monkeypatch, form):
    command("export", "--checkpoint", run, "--to", form, "--output", tmp_path / "out", monkeypatch=monkeypatch)
    command("import", "--checkpoint", tmp_path / "out", "--output", tmp_path / "NEW", monkeypatch=monkeypatch)
    first, second = checkpoint.load_model(run), checkpoint.load_model(tmp_path / "NEW")
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values()):
        assert torch.equal(a, b), name
    rows = tokens.tokenize(TEXTS)
    with torch.no_grad():
        assert torch.equal(first.encode_text(rows), second.encode_text(rows))
    with pytest.raises(UserError, match="already holds a run"):
        save.import_weights(tmp_path / "out", tmp_path / "NEW")
    (tmp_path / "NEW" / "run.json").unlink()  # as after a kill: it is written last
    assert save.import_weights(tmp_path / "out", tmp_path / "NEW").exists()


def test_resnet_goes_to_open_clip_and_not_to_transformers(tmp_path):
    model = random_model(RESNET)
    export.export(model, "open_clip", tmp_path / "oc")
    assert checkpoint.load_model(tmp_path / "oc").config == model.config
    with pytest.raises(UserError, match="no image tower of this kind"):
        export.export(model, "hf", tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["oc"]


CHANGES = {
    "average pooling": ("vision_cfg", {"pool_type": "avg"}),
    "layer scale": ("text_cfg", {"ls_init_value": 0.1}),
    "own vocabulary": ("text_cfg", {"vocab_size": 1000}),
    "query norm": ("vision_cfg", {"qk_norm": True}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_transformers_cannot_hold_is_refused(tmp_path, change):
    config = copy.deepcopy(CONFIG)
    part, values = CHANGES[change]
    config[part].update(values)
    with pytest.raises(UserError, match=r"CLIPModel has .*open_clip"):
        to_huggingface(random_model(config))


def test_custom_text_model_goes_to_transformers(tmp_path):
    pytest.importorskip("transformers")
    model = random_model(CONFIG | {"custom_text": True})
    assert export.export(model, "hf", tmp_path / "out") < 1e-5


def test_other_widths_of_mlp_and_of_norm_come_back(tmp_path):
    config = copy.deepcopy(CONFIG)
    config["vision_cfg"] |= {"mlp_ratio": 2.0, "norm_kwargs": {"eps": 1e-6}}
    model = random_model(config)
    hf_config, hf_state = to_huggingface(model)
    back_config, back = from_huggingface(hf_config | {"model_type": "clip"}, hf_state, tmp_path)
    twin = create_model(back_config).eval()
    twin.load_state_dict(back)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.encode_image(image), twin.encode_image(image))


def test_a_wrong_export_is_noticed_and_removed(tmp_path, monkeypatch):
    model = random_model(CONFIG)
    write = export._save_tensors

    def spoiled(state, path):
        write(state | {"text_projection": state["text_projection"] * -1}, path)

    monkeypatch.setattr(export, "_save_tensors", spoiled)
    with pytest.raises(UserError, match="differ from the model's"):
        export.export(model, "open_clip", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_stays_without_overwrite(tmp_path):
    model = random_model(CONFIG)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(UserError, match="--overwrite"):
        export.export(model, "open_clip", tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "keep"
    with pytest.raises(UserError, match="holds mine, which is no file of an export"):  # a run, say
        export.export(model, "open_clip", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "mine").read_text() == "keep"
    (tmp_path / "out" / "mine").rename(tmp_path / "out" / "README.md")
    export.export(model, "open_clip", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "README.md").read_text() != "keep"


def test_other_hugging_face_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="type 'bert'"):
        checkpoint.load_model(tmp_path)
