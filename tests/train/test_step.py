"""One step: clipping, clamping, and what happens to steps that are not finite."""

import math
from types import SimpleNamespace

import pytest
import torch

from alip.distributed import World
from alip.loss import AdaptiveContrastiveLoss
from alip.train.accumulate import running_statistics
from alip.train.ema import EMA
from alip.train.meter import NAMES, Meter
from alip.train.nonfinite import NonFiniteWatch
from alip.train.optimizer import create_optimizer
from alip.train.step import TrainStep
from tests.helpers.ranks import on_ranks
from tests.helpers.steps import CPU, TINY_MODEL, make_batch, make_model


def make(model_file, opt="adamw", opt_kwargs=None, **options):
    model = make_model(model_file)
    loss = AdaptiveContrastiveLoss(history_init=0.3, check_finite=False, even_batches=True)
    optimizer = create_optimizer(model, lr=1e-3, opt=opt, opt_kwargs=opt_kwargs)
    return TrainStep(model, loss, optimizer, CPU, **options)


def spoil(batch, value):
    batch.image[0, 0, 0, 0] = value
    return batch


def state_of(step):
    moments = [step.optimizer.state[p] for p in step.gradients.parameters]
    return [value.clone() for s in moments for value in s.values()] + [
        p.detach().clone() for p in step.gradients.parameters
    ]


@pytest.mark.parametrize("scaled", [False, True])
def test_a_batch_with_nan_changes_nothing(model_file, scaled):
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    step = make(model_file, scaler=scaler)
    assert not step([make_batch(6)], 1e-3).skipped
    weights, history = state_of(step), step.loss.history.clone()

    result = step([spoil(make_batch(6), math.nan)], 1e-3)
    assert result.skipped and not result.loss_finite
    assert all(torch.equal(a, b) for a, b in zip(state_of(step), weights))
    assert torch.equal(step.loss.history, history)

    good = step([make_batch(6)], 1e-3)
    assert not good.skipped
    assert torch.isfinite(torch.cat([p.flatten() for p in step.gradients.parameters])).all()
    assert not torch.equal(step.gradients.parameters[0], weights[-len(step.gradients.parameters)])


# Optimizers that know nothing of found_inf and grad_scale, and one that does.
OTHERS = [
    ("adamw", {"fused": False}),
    ("timm/sgd", {"momentum": 0.9, "fused": True}),
    ("timm/lamb", {}),
    ("timm/adafactor", {}),
]


def tensors_of(step):
    moments = [
        v for p in step.gradients.parameters for v in step.optimizer.state[p].values() if isinstance(v, torch.Tensor)
    ]
    return [value.detach().clone() for value in (*step.gradients.parameters, *moments)]


@pytest.mark.parametrize("where", ["image", "gradient"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("opt, opt_kwargs", OTHERS)
def test_every_optimizer_leaves_out_a_step_that_is_not_finite(model_file, opt, opt_kwargs, scaled, where):
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    step = make(model_file, opt, opt_kwargs, scaler=scaler)
    assert not step([make_batch(6)], 1e-3).skipped
    before = tensors_of(step)
    if where == "image":
        result = step([spoil(make_batch(6), math.nan)], 1e-3)
    else:  # the loss is finite, a gradient is not
        hook = step.gradients.parameters[3].register_hook(lambda gradient: gradient * math.inf)
        result = step([make_batch(6)], 1e-3)
        hook.remove()
        assert result.loss_finite
    assert result.skipped
    after = tensors_of(step)
    assert len(after) == len(before) and all(torch.equal(a, b) for a, b in zip(after, before))
    assert not step([make_batch(6)], 1e-3).skipped
    assert not torch.equal(step.gradients.parameters[0], before[0])


@pytest.mark.parametrize("opt, opt_kwargs", OTHERS[:3])
def test_every_optimizer_clips_alike(model_file, opt, opt_kwargs):
    """Seen from its step: scaling the loss's gradient up tenfold changes nothing where the norm is clipped."""
    one, other = (make(model_file, opt, opt_kwargs, grad_clip=0.01) for _ in range(2))
    for parameter in other.gradients.parameters:
        parameter.register_hook(lambda gradient: gradient * 10)
    assert other([make_batch(6)], 1e-3).grad_norm > 5 * one([make_batch(6)], 1e-3).grad_norm
    for a, b in zip(one.gradients.parameters, other.gradients.parameters):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
    assert torch.cat([p.grad.flatten() for p in one.gradients.parameters]).norm() < 0.0101


@pytest.mark.parametrize("scaled", [False, True])
def test_a_finite_loss_with_a_gradient_that_is_not_leaves_no_trace(model_file, scaled):
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    step = make(model_file, scaler=scaler)
    step.ema = EMA(step.model, 0.9)
    step([make_batch(6)], 1e-3)
    weights, history = state_of(step), step.loss.history.clone()
    averaged = {key: value.clone() for key, value in step.ema.weights.items()}

    handle = step.model.text_projection.register_hook(lambda gradient: gradient * math.inf)
    result = step([make_batch(6, seed=1)], 1e-3)
    handle.remove()
    assert result.loss_finite and result.skipped
    assert all(torch.equal(a, b) for a, b in zip(state_of(step), weights))
    assert torch.equal(step.loss.history, history) and int(step.ema.steps) == 1
    assert all(torch.equal(value, averaged[key]) for key, value in step.ema.weights.items())


def test_running_statistics_of_a_batch_with_nan_do_not_stay(model_file):
    model = make_model({**TINY_MODEL, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}})
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True)
    step = TrainStep(model, loss, create_optimizer(model, lr=1e-3), CPU)
    step([make_batch(6)], 1e-3)
    before = [buffer.clone() for buffer in running_statistics(model)]
    assert step([spoil(make_batch(6), math.nan)], 1e-3).skipped
    assert before and all(torch.equal(a, b) for a, b in zip(running_statistics(model), before))


def test_gradient_is_clipped_to_its_true_norm(model_file):
    free, clipped = make(model_file, grad_clip=0.0), make(model_file, grad_clip=0.05)
    norm = free([make_batch(6)], 0.0).grad_norm
    gradients = torch.cat([p.grad.flatten() for p in free.gradients.parameters])
    torch.testing.assert_close(norm, gradients.norm())
    assert clipped([make_batch(6)], 0.0).grad_norm == norm  # as it was before
    after = torch.cat([p.grad.flatten() for p in clipped.gradients.parameters])
    torch.testing.assert_close(after, gradients * (0.05 / norm), rtol=1e-4, atol=1e-8)


def test_logit_scale_stays_in_its_range(model_file):
    step = make(model_file, logit_scale_max=20.0)
    for value, expected in ((7.0, math.log(20.0)), (-3.0, 0.0)):
        step.model.logit_scale.data.fill_(value)
        step([make_batch(6)], 0.0)
        assert step.model.logit_scale.item() == pytest.approx(expected)


def test_learning_rate_and_beta1_reach_the_optimiser(model_file):
    step = make(model_file)
    before = [p.detach().clone() for p in step.gradients.parameters]
    step([make_batch(6)], 0.0, 0.5)
    assert all(torch.equal(p, b) for p, b in zip(step.gradients.parameters, before))
    assert {group["betas"] for group in step.optimizer.param_groups} == {(0.5, 0.98)}


def test_ema_follows(model_file):
    step = make(model_file)
    step.ema = EMA(step.model, 0.5)
    start = step.model.state_dict()["text_projection"].clone()
    step([make_batch(6)], 1e-2)
    now, averaged = step.model.state_dict()["text_projection"], step.ema.weights["text_projection"]
    torch.testing.assert_close(averaged, start + 0.9 * (now - start))  # the first share: 1 - 1/10


def fake_result(value: float, skipped: bool = False):
    outcome = SimpleNamespace(**{name: torch.full((4,), value) for name in NAMES[3:-1]})
    for name in NAMES[:3]:
        setattr(outcome, name, torch.tensor(value))
    return SimpleNamespace(
        outcome=outcome,
        grad_norm=torch.tensor(value),
        skipped=torch.tensor(skipped),
        loss_finite=torch.tensor(math.isfinite(value)),
    )


def test_meter_means_without_skipped_steps():
    meter = Meter(CPU)
    for value, skipped in ((1.0, False), (math.inf, True), (4.0, False)):
        meter.add(fake_result(value, skipped))
    saved = meter.state()
    assert meter.read(World()) == dict.fromkeys(NAMES, 2.5)
    assert all(math.isnan(v) for v in meter.read(World()).values())  # it started again, and nothing was added
    meter.load([saved, saved])
    assert meter.read(World()) == dict.fromkeys(NAMES, 2.5)


def _meter_on_rank(world):
    meter = Meter(CPU)
    meter.add(fake_result(float(world.rank)))
    return meter.read(world)


def test_meter_means_over_ranks():
    assert on_ranks(2, _meter_on_rank) == [dict.fromkeys(NAMES, 0.5)] * 2


def watch_after(values, limit, only_loss=False):
    watch = NonFiniteWatch(limit, only_loss)
    answers = []
    for step, value in enumerate(values, start=1):
        if value == "read":
            answers.append(watch.read())
        else:
            watch.add(step, torch.tensor([10 * step, 10 * step + 1]), fake_result(value, not math.isfinite(value)))
    return watch, answers


def test_watch_counts_across_readings(tmp_path):
    nan = math.nan
    watch, answers = watch_after([nan, nan, "read", nan, 1.0, "read"], 3)
    assert answers == [([1, 2], False), ([4], True)]  # the third in a row came after the first reading
    path = watch.write(tmp_path, World())
    assert '"step": 4' in path.read_text() and "41" in path.read_text()

    _, answers = watch_after([nan, nan, 1.0, nan, nan, "read"], 3)
    assert answers == [([1, 2, 4, 5], False)]


def test_watch_leaves_fp16s_overflows_to_the_scaler():
    watch = NonFiniteWatch(2, only_loss=True)
    for step in range(4):
        result = fake_result(1.0, skipped=True)
        watch.add(step, torch.tensor([0]), result)
    assert watch.read() == ([], False)
