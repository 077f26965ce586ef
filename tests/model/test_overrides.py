"""What a user changes about images reaches the towers, the configuration and the evaluation's preprocessing."""

import pytest
import torch
from open_clip.model import resize_pos_embed
from PIL import Image

from alip.errors import UserError
from alip.model import create_model

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_size_mean_and_std():
    model = create_model(CONFIG, image_size=48, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.5])
    assert model.image_size == 48 and model.input_format["image_size"] == 48
    assert (model.input_format["mean"], model.input_format["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    pixels = model.preprocess()(Image.new("RGB", (60, 60), "black"))
    assert pixels.shape == (3, 48, 48)
    torch.testing.assert_close(pixels[:, 0, 0], -torch.tensor([0.1, 0.2, 0.3]) / 0.5)
    assert model.encode_image(pixels[None]).shape == (1, 16)
    again = create_model(model.config)
    assert again.config == model.config and again.image_size == 48


def test_position_embeddings_follow_the_size(tmp_path):
    small = create_model(CONFIG)
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    large = create_model(CONFIG, pretrained=tmp_path / "weights.pt", image_size=64)
    expected = dict(small.state_dict())
    resize_pos_embed(expected, large)
    assert large.visual.positional_embedding.shape == (65, 32)
    assert torch.equal(large.visual.positional_embedding, expected["visual.positional_embedding"])
    assert torch.equal(large.visual.conv1.weight, small.visual.conv1.weight)


def test_interpolation_and_resize_mode():
    image = Image.effect_noise((64, 40), 80).convert("RGB")
    seen = {}
    for interpolation in ("bilinear", "bicubic"):
        for mode in ("shortest", "longest", "squash"):
            model = create_model(CONFIG, image_interpolation=interpolation, image_resize_mode=mode)
            assert model.config["preprocess_cfg"]["interpolation"] == interpolation
            seen[interpolation, mode] = model.preprocess()(image)
    values = list(seen.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])


def test_the_models_own_values_stay_without_overrides():
    preprocess = {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2], "interpolation": "bilinear"}
    model = create_model({"model_cfg": CONFIG, "preprocess_cfg": preprocess}, image_resize_mode="squash")
    found = model.config["preprocess_cfg"]
    assert {key: found[key] for key in preprocess} == preprocess and found["resize_mode"] == "squash"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 30}, "patches are 8 pixels"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, "above 0"),
        ({"image_interpolation": "random"}, "bilinear or bicubic"),
        ({"image_resize_mode": "crop"}, "shortest or longest or squash"),
        ({"pretrained_image": True}, "--pretrained"),
    ],
)
def test_values_that_are_not_possible(options, message):
    with pytest.raises(UserError, match=message):
        create_model(CONFIG, **options)
