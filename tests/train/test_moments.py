"""The optimizer's state across a resume: moments by name and in the parameter's layout, settings from the arguments."""

import copy

import pytest
import torch
from torch import nn

from alip.distributed import World
from alip.errors import UserError
from alip.train.moments import OptimizerState
from alip.train.optimizer import create_optimizer
from tests.helpers.checkpoints import content_of, make_state, make_train_step
from tests.helpers.steps import make_batch


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.second(self.first(x).relu()).square().mean()


def advance(model, optimizer, steps):
    images = torch.randn(steps, 2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    for image in images:
        optimizer.zero_grad()
        model(image).backward()
        optimizer.step()


def test_contiguous_moments_of_a_channels_last_parameter():
    """A fused optimizer walks through parameter and moments side by side in memory, whatever the strides say."""
    model = Convolutions().to(memory_format=torch.channels_last)
    optimizer = create_optimizer(model, lr=1e-2)
    kept = OptimizerState(model, optimizer)
    advance(model, optimizer, 3)
    saved, weights = copy.deepcopy(kept.capture()), copy.deepcopy(model.state_dict())
    for state in saved["state"].values():
        state |= {key: value.contiguous() for key, value in state.items()}
    assert not model.second.weight.is_contiguous() and saved["state"][0]["exp_avg"].is_contiguous()

    other = Convolutions().to(memory_format=torch.channels_last)
    other.load_state_dict(weights)
    resumed = create_optimizer(other, lr=1e-2)
    OptimizerState(other, resumed).restore(saved)
    moment = resumed.state[other.second.weight]["exp_avg"]
    assert moment.stride() == other.second.weight.stride() != saved["state"][0]["exp_avg"].stride()
    advance(model, optimizer, 3)
    advance(other, resumed, 3)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_amsgrad_cannot_begin_in_the_middle():
    """It keeps one moment more, whose absence would be a KeyError in the first step."""
    model = Convolutions()
    optimizer = create_optimizer(model, lr=1e-2)
    advance(model, optimizer, 1)
    saved = OptimizerState(model, optimizer).capture()
    other = create_optimizer(model, lr=1e-2, opt_kwargs={"amsgrad": True})
    with pytest.raises(UserError, match="which amsgrad needs"):
        OptimizerState(model, other).restore(saved)


def test_moments_find_their_parameters_in_other_groups():
    """With --decay-all the same parameters are numbered in another order."""
    model = Convolutions()
    kept = OptimizerState(model, create_optimizer(model, lr=1e-2))
    advance(model, kept.optimizer, 2)
    other = OptimizerState(model, create_optimizer(model, lr=1e-2, decay_all=True))
    assert list(other.parameters) != list(kept.parameters)
    other.restore(copy.deepcopy(kept.capture()))
    for name, parameter in kept.parameters.items():
        for key, value in kept.optimizer.state[parameter].items():
            assert torch.equal(other.optimizer.state[other.parameters[name]][key], value)


@pytest.mark.parametrize(
    "setting",
    [{"weight_decay": 3.0}, {"eps": 0.1}, {"beta1": 0.5, "beta2": 0.98}, {"beta1": 0.9, "beta2": 0.5}],
    ids=str,
)
def test_new_settings_apply_and_the_moments_stay(setting):
    saved = content_of(make_state(steps=2))
    state = make_state(**setting)
    state.restore(saved, World(), seed=0)
    # The expected step: moments as saved, with an optimizer that has the setting from the start.
    expected = make_state(steps=2)
    for group, new in zip(expected.optimizer.param_groups, make_state(**setting).optimizer.param_groups):
        group.update({key: value for key, value in new.items() if key != "params"})
    same_as_before = make_state()
    same_as_before.restore(saved, World(), seed=0)
    for one in (state, expected, same_as_before):
        make_train_step(one)([make_batch(4, seed=9)], 1e-3)
    weights = [one.model.state_dict() for one in (state, expected, same_as_before)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert not torch.equal(weights[0]["text_projection"], weights[2]["text_projection"])


def test_the_beta1_that_a_schedule_moved_is_not_kept_by_a_run_without_it():
    cycled = make_state(steps=1)
    make_train_step(cycled)([make_batch(4, seed=9)], 1e-3, 0.87)
    state = make_state()
    state.restore(content_of(cycled), World(), seed=0)
    make_train_step(state)([make_batch(4, seed=9)], 1e-3, None)
    assert {group["betas"] for group in state.optimizer.param_groups} == {(0.9, 0.98)}


def test_what_cannot_be_restored_is_named():
    saved = content_of(make_state(steps=1))["optimizer"]
    locked = make_state()
    locked.model.visual.requires_grad_(False)
    fewer = OptimizerState(locked.model, create_optimizer(locked.model, lr=1e-3))
    with pytest.raises(UserError, match=r"other parameters than this run \(visual"):
        fewer.restore(saved)
    with pytest.raises(UserError, match="optimizer is AdamW, this run's is SGD"):
        OptimizerState(locked.model, torch.optim.SGD(locked.model.parameters(), lr=1e-3)).restore(saved)


def test_state_of_an_earlier_version():
    """Without names: the numbering is that of the groups."""
    state = make_state(steps=2)
    saved = content_of(state)["optimizer"]
    old = {key: saved[key] for key in ("state", "param_groups")}
    restored = make_state()
    OptimizerState(restored.model, restored.optimizer).restore(old)
    for ours, theirs in zip(restored.optimizer.state.values(), state.optimizer.state.values(), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    regrouped = create_optimizer(restored.model, lr=1e-3, decay_all=True)
    with pytest.raises(UserError, match="grouped otherwise"):
        OptimizerState(restored.model, regrouped).restore(old)


def test_what_the_optimizer_moves_in_its_groups_is_restored():
    model = Convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    optimizer.param_groups[0]["lookahead_step"] = 0
    kept = OptimizerState(model, optimizer)
    optimizer.param_groups[0]["lookahead_step"] = 5
    saved = copy.deepcopy(kept.capture())
    other = torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=0.5)
    other.param_groups[0]["lookahead_step"] = 0
    OptimizerState(model, other).restore(saved)
    assert (other.param_groups[0]["lookahead_step"], other.param_groups[0]["weight_decay"]) == (5, 0.5)
