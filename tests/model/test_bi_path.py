"""The bi-path model against open_clip's padded one: features, gradients, names, options."""

import copy
import json
import pickle

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP

from alip import tokens, varlen
from alip.errors import UserError
from alip.model import attention, create_model, transformer
from alip.model.transformer import run_blocks

VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
RESNET = VIT | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}
RAW = ["", "a dog", "word " * 200, "two cats on a mat, seen from above", "x y z"]
CAPTIONS = ["a picture", "", "the quick brown fox " * 3, "a", "word " * 74]


def changed(config, **parts):
    config = copy.deepcopy(config)
    for part, values in parts.items():
        if isinstance(values, dict):
            config[part].update(values)
        else:
            config[part] = values
    return config


def reference(model, config):
    """open_clip's own model with the same weights: padded, one text at a time through its own code."""
    arguments = {key: copy.deepcopy(value) for key, value in config.items() if key != "custom_text"}
    twin = (CustomTextCLIP if config.get("custom_text") else CLIP)(**arguments)
    twin.load_state_dict(model.state_dict())
    return twin.train(model.training)


def sharpened(config, seed=0):
    """A model whose attention is not near uniform, as it is at random initialisation."""
    torch.manual_seed(seed)
    model = create_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "conv" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def batch(config, seed=1):
    size = config["vision_cfg"]["image_size"]
    torch.manual_seed(seed)
    return torch.randn(len(RAW), 3, size, size), tokens.tokenize(RAW), tokens.tokenize(CAPTIONS)


def expected(twin, image, text, caption):
    return (
        twin.encode_image(image, normalize=True),
        twin.encode_text(text, normalize=True),
        twin.encode_text(caption, normalize=True),
        twin.logit_scale.exp(),
    )


CONFIGS = {
    "vit": VIT,
    "resnet": RESNET,
    "custom text": changed(VIT, custom_text=True),
    "quick gelu": changed(VIT, quick_gelu=True),
    "average pool": changed(VIT, vision_cfg={"pool_type": "avg"}),
    "norm after pool": changed(VIT, vision_cfg={"final_ln_after_pool": True}),
    "attention pool": changed(VIT, vision_cfg={"attentional_pool": True, "attn_pooler_heads": 2}),
    "layer scale": changed(VIT, vision_cfg={"ls_init_value": 0.3}, text_cfg={"ls_init_value": 0.3}),
    "projection bias": changed(VIT, custom_text=True, text_cfg={"proj_bias": True}),
    "end id": changed(VIT, text_cfg={"pool_type": "eos", "eos_id": 49407}),
    "one layer": changed(VIT, vision_cfg={"layers": 1}, text_cfg={"layers": 1}),
    # Towers that must see the padding, and so fall back to the full length.
    "not causal": changed(VIT, custom_text=True, text_cfg={"no_causal_mask": True}),
    "last pool": changed(VIT, custom_text=True, text_cfg={"pool_type": "last"}),
    "first pool": changed(VIT, text_cfg={"pool_type": "first"}),
    "class token": changed(VIT, custom_text=True, text_cfg={"embed_cls": True}),
    "custom blocks": changed(VIT, vision_cfg={"qk_norm": True}, text_cfg={"qk_norm": True}),
}
PADDED = ("not causal", "last pool", "first pool", "class token", "custom blocks")


@pytest.mark.parametrize("name", CONFIGS)
def test_features_and_gradients_equal_open_clips(name):
    config = CONFIGS[name]
    model = sharpened(config)
    twin = reference(model, config)
    inputs = batch(config)
    ours, theirs = model(*inputs), expected(twin, *inputs)
    torch.manual_seed(2)
    weights = [torch.randn_like(value) for value in ours]
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    sum((a * w).sum() for a, w in zip(ours, weights)).backward()
    sum((a * w).sum() for a, w in zip(theirs, weights)).backward()
    grads = dict(twin.named_parameters())
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{key} is not used: DistributedDataParallel would wait for it"
        scale = grads[key].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, grads[key].grad, rtol=0, atol=1e-5 * max(scale, 1.0), msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_only_towers_that_allow_it_drop_padding(name):
    assert create_model(CONFIGS[name])._needs_padding() == (name in PADDED)


def test_hugging_face_text_tower_falls_back_to_full_length(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.RobertaConfig(
        vocab_size=49408, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=80, pad_token_id=0,
    ).save_pretrained(tmp_path)  # fmt: skip
    text = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "context_length": 77}
    model = create_model(VIT | {"text_cfg": text}).eval()
    rows = tokens.tokenize(RAW)
    with torch.no_grad():
        assert model._needs_padding()
        torch.testing.assert_close(model.encode_text(rows), model.text(rows), rtol=0, atol=0)


@pytest.mark.parametrize("custom", [False, True])
def test_state_dict_names_are_open_clips(custom):
    config = changed(VIT, custom_text=custom)
    model = create_model(config)
    twin = reference(model, config)
    assert list(model.state_dict()) == list(twin.state_dict())
    model.load_state_dict(twin.state_dict())


def test_group_step_changes_nothing():
    model = sharpened(VIT)
    rows = tokens.tokenize(RAW + CAPTIONS)
    lengths = tokens.lengths(rows)
    whole = varlen.plan_varlen(lengths, 77, group_step=77)
    exact = varlen.plan_varlen(lengths, 77, group_step=1)
    assert len(whole.groups) == 1 and whole.padded_index is not None and exact.padded_index is None
    torch.manual_seed(0)
    x = torch.randn(int(lengths.sum()), 64)
    results = [run_blocks(model.transformer, x, plan, causal=True) for plan in (whole, exact)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)


def test_the_plan_has_no_row_of_padding():
    rows = tokens.tokenize(RAW + CAPTIONS)
    lengths = tokens.lengths(rows)
    plan = varlen.plan_varlen(lengths, 77)
    unpadded = rows.flatten()[plan.token_index]
    assert len(unpadded) == lengths.sum() and (unpadded > 0).all()
    assert unpadded[plan.pooled_index][plan.batch_order].tolist() == [49407] * len(rows)
    assert (rows.flatten()[plan.token_index - plan.position] == 49406).all()
    assert sorted(set(plan.padded_index.tolist())) == sorted(plan.padded_index.tolist())


def test_fused_and_plain_attention_agree(monkeypatch):
    model = sharpened(VIT)
    inputs = batch(VIT)
    with torch.no_grad():
        plain = model(*inputs)
        monkeypatch.setattr(attention, "PLAIN_ATTENTION_LENGTH", 0)
        fused = model(*inputs)
    for a, b in zip(plain, fused):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_bfloat16_stays_near_fp32():
    model = sharpened(changed(VIT, vision_cfg={"layers": 12}, text_cfg={"layers": 12}))
    with torch.no_grad():
        exact = model(*batch(VIT))
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(*batch(VIT))
    for a, b in zip(exact[:3], rough[:3]):
        assert b.dtype == torch.float32
        assert (a * b).sum(-1).min() > 0.99
        torch.testing.assert_close(b.norm(dim=-1), torch.ones(len(b)))


def test_pad_texts_gives_the_same_features():
    model = sharpened(VIT).eval()
    padded = create_model(VIT, pad_texts=True).eval()
    padded.load_state_dict(model.state_dict())
    with torch.no_grad():
        for a, b in zip(model(*batch(VIT)), padded(*batch(VIT))):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_compiled_model_gives_the_same_features_and_gradients(config, monkeypatch):
    # Tracing as it is in use, without the C++ compiler behind it, which takes a minute.
    traced = []

    def compile(function, **options):
        traced.append(function)
        return torch_compile(function, backend="aot_eager", **options)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    transformer.compiled_function.cache_clear()
    model = sharpened(config)
    compiled = create_model(config, compile=True)
    compiled.load_state_dict(model.state_dict())
    assert list(compiled.state_dict()) == list(model.state_dict())
    for net in (model, compiled):
        image, text, caption, _ = net(*batch(config))
        (image * text.detach() * 3 + text * caption).sum().backward()
    transformer.compiled_function.cache_clear()
    assert len(traced) == (3 if config is RESNET else 5)  # two halves of each tower's blocks, and patches or the ResNet
    for (key, a), b in zip(model.named_parameters(), compiled.parameters()):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=key)


def test_batches_of_any_size_and_shorter_context():
    model = sharpened(VIT).eval()
    rows = tokens.tokenize(RAW)
    with torch.no_grad():
        full = model.encode_text(rows)
        assert torch.equal(model.encode_text(rows[:0]), full[:0])
        torch.testing.assert_close(model.encode_text(rows[1:2]), full[1:2], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.encode_text(rows[3:, :12]), full[3:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_gradient_checkpointing_gives_the_same_gradients(config):
    model = sharpened(config)
    thrifty = create_model(config, grad_checkpointing=True)
    thrifty.load_state_dict(model.state_dict())
    assert thrifty.transformer.grad_checkpointing and not model.transformer.grad_checkpointing
    for net in (model, thrifty):
        image, text, caption, _ = net(*batch(config))
        (image * text.detach() * 3 + text * caption).sum().backward()
    for (key, a), b in zip(model.named_parameters(), thrifty.parameters()):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=key)


def test_patch_dropout_drops_patches_in_training_only():
    model = create_model(VIT, patch_dropout=0.5)
    seen = []
    model.visual.ln_pre.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[1]))
    image = batch(VIT)[0]
    first, second = model.encode_image(image), model.encode_image(image)
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model.encode_image(image), model.encode_image(image))
    assert seen == [9, 9, 17, 17]
    assert create_model(model.config).config == model.config


def test_locked_image_tower_learns_nothing_and_keeps_its_statistics():
    model = create_model(RESNET, lock_image=True, lock_image_freeze_bn_stats=True)
    before = copy.deepcopy(model.visual.state_dict())
    model.train()
    image, text, caption, scale = model(*batch(RESNET))
    (scale * (image * text).sum() + (text * caption).sum()).backward()
    assert all(parameter.grad is None for parameter in model.visual.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.visual.state_dict().items())
    assert model.transformer.resblocks[0].mlp.c_fc.weight.grad is not None


@pytest.mark.parametrize("custom", [False, True])
def test_locked_text_tower_learns_nothing(custom):
    model = create_model(changed(VIT, custom_text=custom), lock_text=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("visual.") or name == "logit_scale" for name in trained)


def test_config_rebuilds_the_model_and_is_json(tmp_path):
    model = create_model(RESNET, quick_gelu=True)
    again = create_model(json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    (tmp_path / "my.json").write_text(json.dumps(RESNET))
    assert again.config == model.config
    assert create_model(tmp_path / "my.json").image_size == 64
    assert (again.context_length, again.vocab_size, again.image_size) == (77, 49408, 64)
    assert again.preprocess()(_image()).shape == (3, 64, 64)
    assert torch.equal(again.tokenizer(["a dog"]), tokens.tokenize(["a dog"]))


def _image():
    from PIL import Image

    return Image.new("RGB", (90, 70), (200, 10, 10))


def test_paper_spelling_and_deep_copy():
    model = create_model("ViT-S/32")
    assert model.config["model_cfg"]["vision_cfg"]["width"] == 384
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin.encode_text(tokens.tokenize(["a"])).abs().sum() > 0


def test_preprocess_is_open_clips():
    model = create_model(VIT)
    theirs = open_clip.image_transform(32, is_train=False)
    assert torch.equal(model.preprocess()(_image()), theirs(_image()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ViT-B32", {}, "near matches: ViT-B-32"),
        ("zzzz", {}, "no model named 'zzzz'"),
        ("nowhere.json", {}, "nowhere.json"),
        ({"embed_dim": 3}, {}, "vision_cfg, text_cfg missing"),
        ("coca_ViT-B-32", {}, "CoCa"),
        (VIT, {"patch_dropout": 1.0}, r"patch dropout must be in \[0, 1\)"),
        (RESNET, {"patch_dropout": 0.5}, "patch dropout is for vision transformers"),
        (VIT | {"vision_cfg": {"no_such_key": 1}}, {}, "no_such_key"),
        ("ViT-B-32", {"pretrained": "no-such-tag"}, "neither a file nor a tag of ViT-B-32"),
    ],
)
def test_mistakes_get_one_clear_line(name, options, message):
    with pytest.raises(UserError, match=message):
        create_model(name, **options)


def test_broken_config_file(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{oops")
    with pytest.raises(UserError, match="not valid JSON"):
        create_model(path)


def test_the_tokenizer_is_called_as_open_clips():
    model = create_model(VIT)
    theirs = open_clip.get_tokenizer("ViT-B-32")
    for texts in ("a dog", ["a dog", "two  dogs, é"], ("a dog",), []):
        assert model.tokenizer(texts).equal(theirs(list(texts) if isinstance(texts, tuple) else texts))
    assert model.tokenizer("a dog", context_length=5).equal(theirs("a dog", context_length=5))
    with pytest.raises(TypeError, match="number 1 is of type NoneType"):
        model.tokenizer(["a", None])
    again = pickle.loads(pickle.dumps(model))
    assert again.tokenizer("a dog").equal(theirs("a dog"))


def test_other_arguments_for_images_are_named():
    with pytest.raises(TypeError, match="no argument 'size'; of images it takes image_size, image_mean"):
        create_model(VIT, size=64)
    assert create_model(VIT, image_mean=0.5).config["preprocess_cfg"]["mean"] == [0.5] * 3
    for wrong in (
        {"image_mean": [120, 120, 120]},
        {"image_std": [58, 57, 57]},
        {"image_std": 0},
        {"image_mean": [0.5]},
    ):
        with pytest.raises(UserError, match="three numbers"):
            create_model(VIT, **wrong)
