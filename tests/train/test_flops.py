"""Model FLOPs by formula against torch's counter of what is executed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alip.model import create_model
from alip.train.flops import ModelFlops, peak_flops_per_s, text_forward_flops
from tests.helpers.steps import TINY_MODEL as MODEL

RESNET = {**MODEL, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
COUNT, LENGTH = 4, 12


def texts():
    tokens = torch.zeros(COUNT, 77, dtype=torch.long)
    tokens[:, 0], tokens[:, 1 : LENGTH - 1], tokens[:, LENGTH - 1] = 49406, 7, 49407
    return tokens


def executed(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def train_once(model):
    *features, _ = model(torch.randn(COUNT, 3, 32, 32), texts(), texts())
    sum(feature.sum() for feature in features).backward()


@pytest.mark.parametrize("config", [MODEL, RESNET], ids=["vit", "resnet"])
def test_forward_passes_are_what_is_executed(config):
    model = create_model(config)
    with torch.no_grad():
        image = executed(lambda: model.encode_image(torch.randn(COUNT, 3, 32, 32)))
        text = executed(lambda: model.encode_text(texts()))
    # torch does not count its CPU's fused attention, a single query of the ResNet's attention pooling.
    assert ModelFlops(model).image_forward * COUNT == pytest.approx(image, rel=2e-3 if config is RESNET else 1e-6)
    assert text_forward_flops(model, LENGTH) * COUNT == pytest.approx(text, rel=1e-6)


def test_count_leaves_the_model_as_it_is():
    model = create_model(RESNET, lock_image=True, lock_image_freeze_bn_stats=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    ModelFlops(model)
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("locked", [{}, {"lock_image": True}, {"lock_text": True}], ids=str)
def test_a_training_sample(locked):
    """The formula's backward pass is two forward passes; the first layer's own needs one (no gradient of images)."""
    model = create_model(MODEL, **locked)
    found = ModelFlops(model).per_sample(LENGTH) * COUNT
    first_layer = 0 if "lock_image" in locked else 2 * COUNT * 16 * model.visual.conv1.weight.numel()
    assert found - first_layer == pytest.approx(executed(lambda: train_once(model)), rel=1e-6)


def test_patch_dropout_counts_what_is_kept():
    whole, half = (ModelFlops(create_model(MODEL, patch_dropout=p)).image_forward for p in (0.0, 0.5))
    assert 0.4 * whole < half < 0.7 * whole


@pytest.mark.parametrize(
    "name, precision, tflops",
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "amp_bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H200", "fp32", 66.9),
        ("NVIDIA A100-SXM4-40GB", "amp", 312.0),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA RTX A6000", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
    ],
)
def test_peaks_are_known_by_the_devices_name(name, precision, tflops):
    assert peak_flops_per_s(name, precision) == (tflops * 1e12 if tflops is not None else None)
