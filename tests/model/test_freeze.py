"""Locked towers against open_clip's own lock(): the same parameters stay trainable, the same statistics move."""

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP

from alip.errors import UserError
from alip.model import create_model

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
VIT = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
TIMM = {"timm_model_name": "test_resnet", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}


def config(vision, **others):
    return {"embed_dim": 16, "vision_cfg": dict(vision), "text_cfg": dict(TEXT), **others}


def theirs(vision, custom=False):
    torch.manual_seed(0)
    return (CustomTextCLIP if custom else CLIP)(16, dict(vision), dict(TEXT))


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("groups", [0, 1, 2, 3, 4, 5])
def test_vision_transformer(groups):
    expected = theirs(VIT)
    expected.lock_image_tower(unlocked_groups=groups)
    model = create_model(config(VIT), lock_image=True, lock_image_unlocked_groups=groups)
    assert trainable(model) == trainable(expected)


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4, 5])
def test_text_tower(layers, custom):
    expected = theirs(VIT, custom)
    expected.lock_text_tower(unlocked_layers=layers, freeze_layer_norm=True)
    for freeze in (True, False):  # open_clip's own towers know no difference
        options = {"lock_text_unlocked_layers": layers, "lock_text_freeze_layer_norm": freeze}
        model = create_model(config(VIT, custom_text=custom), lock_text=True, **options)
        assert trainable(model) == trainable(expected)


def statistics(model):
    return {name: value.clone() for name, value in model.state_dict().items() if "running" in name}


@pytest.mark.parametrize("vision, groups", [(RESNET, 0), (TIMM, 0), (TIMM, 1), (TIMM, 2)])
@pytest.mark.parametrize("freeze", [False, True])
def test_batch_norm(vision, groups, freeze):
    custom = "timm_model_name" in vision
    expected = theirs(vision, custom)
    model = create_model(
        config(vision, custom_text=custom),
        lock_image=True,
        lock_image_unlocked_groups=groups,
        lock_image_freeze_bn_stats=freeze,
    )
    model.load_state_dict(expected.state_dict())
    expected.lock_image_tower(unlocked_groups=groups, freeze_bn_stats=freeze)
    frozen_there = {name for name, _ in expected.named_parameters()} - trainable(expected)
    # FrozenBatchNorm2d has its weights as buffers, so what is frozen there is no parameter any more.
    assert trainable(model) == trainable(expected)
    assert frozen_there <= {name for name, _ in model.named_parameters()} - trainable(model)

    image = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        model.eval().train()  # what an evaluation in between does
        ours, reference = model.encode_image(image), expected.train().encode_image(image)
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    moved, moved_there = statistics(model), statistics(expected)
    for name in moved:
        torch.testing.assert_close(moved[name], moved_there[name])
    start = statistics(create_model(config(vision, custom_text=custom)))
    rests = [torch.equal(moved[name], start[name]) for name in moved]
    assert all(rests) if freeze and groups == 0 else not all(rests)


def test_resnets_are_locked_as_a_whole():
    with pytest.raises(UserError, match="--lock-image-unlocked-groups"):
        create_model(config(RESNET), lock_image=True, lock_image_unlocked_groups=1)
    with pytest.raises(UserError, match="at least 0"):
        create_model(config(VIT), lock_image=True, lock_image_unlocked_groups=-1)
