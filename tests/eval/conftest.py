"""A model that is small enough to be run a hundred times, and its run folder."""

import json

import pytest
import torch

from alip.checkpoint import atomic_save
from alip.model import create_model

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return create_model({"model_cfg": TINY}).eval()


@pytest.fixture(scope="session")
def run(model, tmp_path_factory):
    """A run folder as training leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    atomic_save(
        {
            "format": "alip-checkpoint",
            "version": 1,
            "model": model.state_dict(),
            "ema": None,
            "model_config": model.config,
            "step": 3,
            "samples": 9,
        },
        folder / "checkpoints" / "step-00000003.pt",
    )
    (folder / "run.json").write_text(json.dumps({}))
    return folder
