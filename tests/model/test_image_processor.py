"""Image preparation of Hugging Face folders: the same pixels as transformers', or refused by name."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from alip.errors import UserError
from alip.model import create_model
from alip.model.image_processor import from_huggingface, read_huggingface, to_huggingface

CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
}
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1},
}

FOLLOWED = {
    "as CLIP": CLIP,
    "old numbers": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32},
    "own mean and std": CLIP | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    "bilinear": CLIP | {"resample": 2},
    "not normalised": CLIP | {"do_normalize": False},
    "squashed": SIGLIP,
    "null, where the default is false": SIGLIP | {"do_center_crop": None, "do_pad": None},
    "squashed, bilinear": SIGLIP | {"resample": 2, "image_mean": [0.4, 0.4, 0.4]},
}


@pytest.mark.parametrize("case", FOLLOWED)
@pytest.mark.parametrize("size", [(50, 40), (40, 90), (32, 32)])
def test_pixels_are_those_of_transformers(case, size):
    transformers = pytest.importorskip("transformers")
    content = FOLLOWED[case]
    siglip = content.get("image_processor_type") == "SiglipImageProcessor"
    theirs = getattr(transformers, "SiglipImageProcessor" if siglip else "CLIPImageProcessor")
    settings = {key: value for key, value in content.items() if not key.endswith("_type")}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    expected = theirs(**settings)(image, return_tensors="pt")["pixel_values"][0]

    model = create_model({"model_cfg": TINY, "preprocess_cfg": from_huggingface(content, 32, "p.json")})
    found = model.preprocess()(image)
    assert found.shape == expected.shape
    # Two libraries round the resized pixels (1/255) apart, and cut an odd border on different sides.
    scale = min(model.config["preprocess_cfg"]["std"])
    assert (found - expected).abs().median() <= 1.1 / 255 / scale
    if size == (32, 32):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


REFUSED = {
    "do_resize": CLIP | {"do_resize": False},
    "rescale_factor": CLIP | {"rescale_factor": 1 / 127.5},
    "do_rescale": CLIP | {"do_rescale": False},
    "resample 1 (lanczos)": CLIP | {"resample": 1},
    "resample 99": CLIP | {"resample": 99},
    "crop_size 24": CLIP | {"crop_size": 24},
    "size {'shortest_edge': 40}": CLIP | {"size": {"shortest_edge": 40}},
    "do_center_crop False": CLIP | {"do_center_crop": False},
    "size {'height': 24, 'width': 32}": SIGLIP | {"size": {"height": 24, "width": 32}},
    "image_processor_type ViTImageProcessor": CLIP | {"image_processor_type": "ViTImageProcessor"},
    "image_mean": CLIP | {"image_mean": 0.5},
    "image_std[1]: must be at least 1e-06": CLIP | {"image_std": [1, 0, 1]},
    "size": CLIP | {"size": {"longest_edge": 32}},
    # Some versions and backends of transformers take null for the class's default, others for false.
    "do_center_crop None": CLIP | {"do_center_crop": None},
    "do_normalize None": CLIP | {"do_normalize": None},
    "do_pad": CLIP | {"do_pad": True, "pad_size": {"height": 48, "width": 48}},
    "default_to_square": CLIP | {"size": 32, "default_to_square": True},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(words):
    with pytest.raises(UserError) as caught:
        from_huggingface(REFUSED[words], 32, "preprocessor_config.json")
    message = str(caught.value)
    assert message.startswith("preprocessor_config.json: ") and words in message


def test_both_files_are_read_and_none_is_clips_own(tmp_path):
    assert read_huggingface(tmp_path, 32) == {}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": CLIP | {"resample": 2}}))
    assert read_huggingface(tmp_path, 32)["interpolation"] == "bilinear"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP))
    with pytest.raises(UserError, match="differ in interpolation, and versions of transformers take one or the other"):
        read_huggingface(tmp_path, 32)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert read_huggingface(tmp_path, 32)["interpolation"] == "bicubic"


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_there_and_back(mode, interpolation):
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": interpolation, "resize_mode": mode}
    assert from_huggingface(to_huggingface(cfg, 32), 32, "x") == cfg | {"size": 32}


def test_padded_resize_is_not_exported():
    cfg = {"mean": [0.1] * 3, "std": [0.4] * 3, "interpolation": "bicubic", "resize_mode": "longest"}
    with pytest.raises(UserError, match="resize_mode longest"):
        to_huggingface(cfg, 32)
