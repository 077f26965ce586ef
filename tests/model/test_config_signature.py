"""Reading a model's sizes from weights that hold nonsense."""

import torch

from alip.model.config import likely_models


def test_positions_without_rows_are_no_model():
    """A table of no positions has no square root: no model is likely, and nothing fails."""
    width = 8
    state = {
        "positional_embedding": torch.zeros(77, width),
        "token_embedding.weight": torch.zeros(100, width),
        "text_projection": torch.zeros(width, 4),
        "visual.conv1.weight": torch.zeros(width, 3, 16, 16),
        "visual.positional_embedding": torch.zeros(0, width),
    }
    assert not likely_models(state)
    resnet = {**state, "visual.attnpool.positional_embedding": torch.zeros(0, width)}
    resnet["visual.layer1.0.conv1.weight"] = torch.zeros(width, 8, 1, 1)
    assert not likely_models(resnet)
