"""Configurations are checked before anything is built: keys, types, sizes."""

import copy
import json
import time

import open_clip
import pytest

from alip.errors import UserError
from alip.model import create_model
from alip.model.config_schema import check_model_cfg, parameter_count

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1},
}


def test_every_configuration_of_open_clip_is_allowed():
    for name in open_clip.list_models():
        check_model_cfg(open_clip.get_model_config(name), name)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        {**TINY, "vision_cfg": {**TINY["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2}},
        {**TINY, "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None}},
        {**TINY, "vision_cfg": {**TINY["vision_cfg"], "mlp_ratio": 3.0, "image_size": [32, 64]}},
    ],
)
def test_the_parameter_count_is_near_the_models(config):
    count = sum(parameter.numel() for parameter in create_model(config).parameters())
    assert 0.9 * count < parameter_count(config) < 1.2 * count


HUGE = {
    "width": ("text_cfg", {"width": 65536, "layers": 512, "heads": 8}),
    "vocabulary": ("text_cfg", {"width": 65536, "vocab_size": 10_000_000, "heads": 8}),
    "layers": ("vision_cfg", {"layers": 512, "width": 65536}),
    "image": ("vision_cfg", {"image_size": 8192, "patch_size": 1, "width": 65536}),
    "resnet": ("vision_cfg", {"layers": [512, 512, 512, 512], "width": 65536}),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_model_that_the_memory_cannot_hold_is_refused_at_once(case):
    config = copy.deepcopy(TINY)
    part, values = HUGE[case]
    config[part].update(values)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"billion parameters, [\d,]+ GB in fp32, and this machine has"):
        create_model(config)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("text_cfg", {"layers": "12"}, "text_cfg.layers: must be integer, not string '12'"),
        ("text_cfg", {"layers": 10**9}, "text_cfg.layers: must be at most 512, not 1000000000"),
        ("text_cfg", {"context_length": -1}, "text_cfg.context_length: must be at least 2, not -1"),
        ("text_cfg", {"pool_type": "none"}, "text_cfg.pool_type: must be one of"),
        ("text_cfg", {"hf_model_name": "no/where"}, "configuration is not on this machine; run: hf download no/where"),
        ("vision_cfg", {"image_size": [32]}, "vision_cfg.image_size"),
        ("vision_cfg", {"widht": 64}, "vision_cfg: unknown key widht"),
        ("vision_cfg", {"timm_model_name": "hf-hub:some/model"}, "timm has no model 'hf-hub:some/model'"),
        ("vision_cfg", {"head_width": 3}, "open_clip cannot build this model"),
        ("vision_cfg", {"patch_size": 64}, "patch_size 64 is larger than the image"),
        ("vision_cfg", {"width": None}, "vision_cfg.width: must be integer, not null"),
    ],
)
def test_one_line_with_file_and_key(part, values, message, tmp_path):
    config = copy.deepcopy(TINY)
    config[part].update(values)
    path = tmp_path / "my.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        create_model(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf-hub:org/model", "local-dir:/some/folder"])
def test_names_of_weights_are_no_architecture(name):
    with pytest.raises(UserError, match=r"alip\.checkpoint import"):
        create_model(name)
