"""The model, batches and step that benchmarks/gpu.py checks and measures: ViT-B/32, or a tiny one."""

from __future__ import annotations

import torch
from torch import nn

from alip.data.batch import Batch, prepare_texts
from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model
from alip.model.compilation import missing_compiler
from alip.train.optimizer import create_optimizer
from alip.train.step import TrainStep

START, END, CONTEXT = 49406, 49407, 77
VIT_B_32 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 32},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def config(report) -> dict:
    """Of the model: written out, so that open_clip's list of models is not needed."""
    return TINY if report.tiny else VIT_B_32


def make_model(report, **options) -> nn.Module:
    """A model on the device."""
    return create_model(config(report), **options).to(report.device)


def compiled(report) -> dict[str, bool]:
    """create_model's option to compile, where that can be done; on a CPU it would take minutes."""
    return {"compile": True} if not report.tiny and missing_compiler(report.device) is None else {}


def make_step(model: nn.Module, device: torch.device, **options) -> TrainStep:
    """train.py's own step, in bf16."""
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(device)
    return TrainStep(model, loss, create_optimizer(model, lr=1e-6), device, precision="amp_bf16", **options)


def random_tokens(lengths: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Token rows (n, 77) with these lengths: start, random ids, end, zeros."""
    rows = torch.randint(1, START, (len(lengths), CONTEXT), generator=generator)
    rows[torch.arange(CONTEXT) >= lengths[:, None]] = 0
    rows[:, 0] = START
    rows[torch.arange(len(rows)), lengths - 1] = END
    return rows


def make_batches(model: nn.Module, count: int, size: int, device: torch.device) -> list[Batch]:
    """Batches as the loader gives them: bytes, tokens, plan. Raw texts: log-normal lengths (mean about 16), 3 % of 77
    tokens; captions: 10 to 15."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.Generator(device).manual_seed(0)  # on the device: a CPU takes seconds for 8,192 images
    batches = []
    for _ in range(count):
        raw = (torch.randn(size, generator=generator) * 0.65 + 2.6).exp().round().clamp(4, CONTEXT).long()
        raw[torch.rand(size, generator=generator) < 0.03] = CONTEXT
        caption = torch.randint(10, 16, (size,), generator=generator)
        tokens = random_tokens(torch.cat([raw, caption]), generator)
        text, captions, plan = prepare_texts(tokens, model.plan_texts, device).send(device)
        side = model.image_size
        shape = (size, 3, side, side)
        image = torch.randint(0, 256, shape, generator=pixels, dtype=torch.uint8, device=device)
        batches.append(Batch(image, text, captions, torch.arange(size), plan))
    return batches
