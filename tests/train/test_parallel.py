"""BatchNorm over all ranks: which layers, and where it cannot be."""

import pytest
import torch
from torch import nn

from alip.distributed import World
from alip.errors import UserError
from alip.model import create_model
from alip.train.optimizer import create_optimizer
from alip.train.parallel import synchronise_batch_norm

RESNET = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
GPUS = World(rank=0, local_rank=0, world_size=2, device=torch.device("cuda", 0))


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def test_every_batch_norm_is_synchronised_and_keeps_its_parameters():
    model = create_model(RESNET, lock_image=False)
    before, names = norms(model), list(model.state_dict())
    parameters = {id(parameter) for parameter in model.parameters()}
    synchronise_batch_norm(model, GPUS)
    after = norms(model)
    assert len(after) == len(before) > 10 and all(type(norm) is nn.SyncBatchNorm for norm in after)
    assert list(model.state_dict()) == names
    assert {id(parameter) for parameter in model.parameters()} == parameters
    optimised = {id(p) for group in create_optimizer(model, lr=1e-3).param_groups for p in group["params"]}
    assert optimised == parameters


def test_a_single_rank_stays_as_it_is_and_models_without_are_refused(model_file):
    model = create_model(RESNET)
    synchronise_batch_norm(model, World())
    assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms(model))
    for world in (World(), World(world_size=2)):
        with pytest.raises(UserError, match="no BatchNorm: leave it out"):
            synchronise_batch_norm(create_model(model_file), world)


def test_not_on_a_cpu():
    with pytest.raises(UserError, match="--use-bn-sync"):
        synchronise_batch_norm(create_model(RESNET), World(world_size=2))
