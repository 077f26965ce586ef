"""No step makes the host wait for the device: nothing is read from a tensor between two log lines.

Without a GPU this is shown on tensors without content. A step on torch's `meta` device takes the branches of a GPU, and
every read or copy to the host raises there; a step on fake CPU tensors takes autocast and the gradient scaler too, and
every read of a value raises.
"""

import contextlib
import dataclasses
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from alip.data.batch import prepare_texts
from alip.loss import AdaptiveContrastiveLoss
from alip.model import attention, transformer
from alip.train import accumulate
from alip.train.ema import EMA
from alip.train.gate_metrics import MismatchMetrics
from alip.train.meter import Meter
from alip.train.nonfinite import NonFiniteWatch
from alip.train.optimizer import create_optimizer
from alip.train.step import TrainStep
from tests.helpers.steps import TINY_MODEL, make_batch, make_model

META = torch.device("meta")


def planned(model, batch):
    """The batch with its texts' plan, made on the host as the loader makes it."""
    texts = prepare_texts(torch.cat([batch.text_tokens, batch.caption_tokens]), model.plan_texts, torch.device("cpu"))
    return dataclasses.replace(batch, text_plan=texts.plan)


def sent(batch, device):
    """The batch as it reaches the device: pixels as bytes."""
    parts = {name: getattr(batch, name).to(device) for name in ("text_tokens", "caption_tokens")}
    image = batch.image.clamp(0, 1).mul(255).to(torch.uint8).to(device)
    return dataclasses.replace(batch, image=image, text_plan=batch.text_plan and batch.text_plan.to(device), **parts)


def watched(step, micro_batches):
    """One step, and all that the trainer records of it between two log lines."""
    index = torch.cat([batch.index for batch in micro_batches])
    meter, watch, gates = Meter(step.device), NonFiniteWatch(3, False), MismatchMetrics(None)
    result = step(micro_batches, 1e-3, 0.9)
    meter.add(result)
    watch.add(1, index, result)
    gates.add(index, result)
    return result


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Attention by the varlen kernel, and the fused optimizer, on `meta`; which has no autocast: see the other test."""
    kernels = []
    for module in (attention, transformer):
        monkeypatch.setattr(module, "choose_kernel", lambda *a: kernels.append("varlen") or "varlen")
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
    monkeypatch.setattr(transformer, "_compute_type", lambda x: x.dtype)
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *a, **k: None)
    return kernels


def on_meta(model_file, **options):
    """A step whose tensors have no content."""
    model = make_model(model_file, **options).to(META)
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(META)
    optimizer = create_optimizer(model, lr=1e-3)
    return TrainStep(model, loss, optimizer, META, ema=EMA(model, 0.9), grad_clip=1.0)


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("options", [{}, {"grad_checkpointing": True}], ids=["plain", "checkpointing"])
def test_a_step_as_on_a_gpu_reads_nothing(model_file, as_on_a_gpu, micro, options):
    step = on_meta(model_file, **options)
    batches = [sent(planned(step.model, make_batch(6, seed)), META) for seed in range(micro)]
    result = watched(step, batches)
    assert result.skipped.device.type == "meta" and as_on_a_gpu
    assert all(p.grad is not None for p in step.model.parameters())


def test_a_plan_made_on_the_device_would_be_noticed(model_file, as_on_a_gpu):
    step = on_meta(model_file)
    with pytest.raises(NotImplementedError, match="meta"):
        step([sent(make_batch(6), META)], 1e-3)


@pytest.mark.parametrize("micro, precision, scaled", [(1, "amp_bf16", False), (3, "amp", True)])
def test_a_step_with_autocast_and_scaler_reads_nothing(model_file, monkeypatch, micro, precision, scaled):
    for name in ("get_randomness", "set_randomness"):  # of the host's generators, whose states are real tensors
        monkeypatch.setattr(accumulate, name, lambda *a: None)
    model = make_model(model_file)
    batches = [planned(model, make_batch(6, seed)) for seed in range(micro)]
    mode = FakeTensorMode()
    fake, batches = make_fake(mode, model), [make_fake_batch(mode, batch) for batch in batches]
    with mode:
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
        loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True)
        options = {"precision": precision, "scaler": scaler, "ema": EMA(fake, 0.9), "grad_clip": 1.0}
        step = TrainStep(fake, loss, create_optimizer(fake, lr=1e-3), torch.device("cpu"), **options)
        result = watched(step, batches)
        with pytest.raises(Exception, match=r"aten\._local_scalar_dense"):
            result.skipped.item()


def make_fake(mode, model):
    """The model with fake parameters in place of its own."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(mode.from_tensor(parameter.detach()))
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
    return model


def make_fake_batch(mode, batch):
    plan = batch.text_plan
    tensors = {name: mode.from_tensor(v) for name, v in vars(plan).items() if isinstance(v, torch.Tensor)}
    names = ("image", "text_tokens", "caption_tokens", "index")
    parts = {name: mode.from_tensor(getattr(batch, name)) for name in names}
    return dataclasses.replace(batch, text_plan=dataclasses.replace(plan, **tensors), **parts)


def test_dropped_patches_are_open_clips(model_file):
    """The same random numbers, patches and gradients as open_clip's PatchDropout, which would wait for the device."""
    from alip.model.bi_path import _drop_patches

    model = make_model({**TINY_MODEL, "vision_cfg": {**TINY_MODEL["vision_cfg"], "patch_dropout": 0.5}})
    dropout = model.visual.patch_dropout
    for exclude in (True, False):
        dropout.exclude_first_token = exclude
        found = []
        for drop in (dropout, lambda x: _drop_patches(dropout, x)):
            torch.manual_seed(3)
            x = torch.randn(4, 17, 8, requires_grad=True)
            out = drop(x)
            (gradient,) = torch.autograd.grad(out.square().sum(), x)
            found.append((out, gradient))
        assert all(torch.equal(a, b) for a, b in zip(*found))
    dropout.eval()
    assert _drop_patches(dropout, x) is x
