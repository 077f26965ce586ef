"""Small models as others publish them, for the tests of reading them."""

import copy

import torch

from alip.model import create_model

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1},
}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear", "resize_mode": "squash"}


def tiny(**options):
    torch.manual_seed(0)
    return create_model(copy.deepcopy({"model_cfg": TINY | options, "preprocess_cfg": HALF})).eval()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
