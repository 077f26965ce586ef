"""What benchmarks/gpu.py checks on a GPU before it measures: against fp64, sequence by sequence, without a wait."""

from __future__ import annotations

import contextlib
import copy

import torch
import torch.distributed as dist
from gpu_model import compiled, make_batches, make_model, make_step
from torch.nn import functional as F

from alip.loss import AdaptiveContrastiveLoss
from alip.model import attention
from alip.varlen import plan_equal, plan_varlen

_SAMPLES = (
    128  # more than 3,072 tokens: the embedding's gradient has another kernel from there on, and every run is there
)


def _features(count: int, width: int, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(count, width, generator=generator)
    noisy = [base + 2 * torch.randn(count, width, generator=generator) for _ in range(3)]
    return [F.normalize(f, dim=1).to(device) for f in noisy]


def _plain_loss(x, t, c, scale, weights) -> torch.Tensor:
    """The adaptive loss written out, for weights that are given."""
    labels, total = torch.arange(len(x), device=x.device), x.new_zeros(())
    for texts, weight in zip((t, c), weights):
        logits = scale * x @ texts.T
        both = F.cross_entropy(logits, labels, reduction="none") + F.cross_entropy(logits.T, labels, reduction="none")
        total = total + (weight * both / 2).mean()
    return total


def loss(report) -> None:
    """Loss and gradients against the same written out in fp64; TF32 allowed outside must not reach them."""
    count = 64 if report.tiny else 2048
    features = _features(count, 32 if report.tiny else 512, report.device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        ours = [f.clone().requires_grad_() for f in features]
        scale = torch.tensor(50.0, device=report.device, requires_grad=True)
        module = AdaptiveContrastiveLoss(history_init=0.3, check_finite=False).to(report.device)
        outcome = module(*ours, scale)
        outcome.loss.backward()
    finally:
        torch.set_float32_matmul_precision(before)
    exact = [f.double().requires_grad_() for f in features]
    exact_scale = scale.detach().double().requires_grad_()
    weights = [(outcome.sample_weight * w).double() for w in (outcome.text_weight, outcome.caption_weight)]
    expected = _plain_loss(*exact, exact_scale, weights)
    expected.backward()
    error = abs(outcome.loss.item() / expected.item() - 1)
    report.check("loss", error < 1e-5, f"relative error {error:.1e}")
    for name, a, b in zip(("image", "text", "caption"), ours, exact):
        error = ((a.grad.double() - b.grad).norm() / b.grad.norm()).item()
        report.check(f"gradient of the {name} features", error < 1e-4, f"relative error {error:.1e}")
    error = abs(scale.grad.item() - exact_scale.grad.item()) / max(abs(exact_scale.grad.item()), 1e-6)
    report.check("gradient of the logit scale", error < 1e-3, f"relative error {error:.1e}")


def attention_one_by_one(qkv: torch.Tensor, heads: int, lengths: list[int], causal: bool) -> torch.Tensor:
    """Each sequence by itself, in fp64."""
    found = []
    for part in qkv.double().split(lengths):
        q, k, v = part.view(len(part), 3, heads, -1).permute(1, 2, 0, 3)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if causal:
            scores = scores + torch.full_like(scores, -torch.inf).triu(1)
        found.append((scores.softmax(-1) @ v).transpose(0, 1).reshape(len(part), -1))
    return torch.cat(found)


def attention_case(report, dtype: torch.dtype, patches: int | None) -> None:
    """One type, texts (None) or images of so many tokens: output, gradient and pooled query."""
    heads, width = 4, 256
    generator = torch.Generator().manual_seed(0)
    causal = patches is None
    if causal:
        lengths = sorted(torch.randint(2, 78, (64,), generator=generator).tolist())
        plan = plan_varlen(torch.tensor(lengths), 77).to(report.device)
    else:
        lengths = [patches] * 32
        plan = plan_equal(32, patches, report.device)
    qkv = torch.randn(sum(lengths), 3 * width, generator=generator).to(report.device, dtype).requires_grad_()
    expected = attention_one_by_one(qkv, heads, lengths, causal)
    weight = torch.randn(expected.shape, generator=generator).to(report.device).double()
    (gradient,) = torch.autograd.grad((expected * weight).sum(), qkv)
    found = attention.self_attention(qkv, heads, plan, causal)
    (found_gradient,) = torch.autograd.grad((found.double() * weight).sum(), qkv)
    last = torch.tensor(lengths, device=report.device).cumsum(0) - 1
    pooled = attention.pooled_attention(qkv[last, :width], qkv[:, width:], heads, plan)
    whole = attention_one_by_one(qkv, heads, lengths, causal=False)[last]
    errors = [((a.double() - b).norm() / b.norm()).item() for a, b in ((found, expected), (pooled, whole))]
    errors.append(((found_gradient.double() - gradient.double()).norm() / gradient.double().norm()).item())
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype]
    kernel = attention.choose_kernel(report.device, dtype, width // heads, plan.longest)
    detail = f"{kernel}; relative errors: output {errors[0]:.1e}, pooled {errors[1]:.1e}, gradient {errors[2]:.1e}"
    report.check(f"{'texts' if causal else f'images of {patches} tokens'}, {dtype}", max(errors) < limit, detail)


def attention_(report) -> None:
    """Attention over unpadded tokens against each sequence by itself in fp64, with its gradient."""
    report.say(f"torch.nn.attention.varlen is {'' if attention.varlen_attn is not None else 'not '}in this torch", "")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for patches in (None, 50, 197):  # ViT-B/32's and ViT-B/16's
            attention_case(report, dtype, patches)


def _gradient(model, batch, dtype: torch.dtype | None, device: torch.device) -> tuple[float, torch.Tensor]:
    """Loss and all gradients of one pass in a number type; None: the model's own."""
    model.zero_grad()
    autocast = torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()
    with autocast:
        features = model(*batch.inputs)
    outcome = AdaptiveContrastiveLoss(history_init=0.3, check_finite=False).to(device)(*features)
    (outcome.loss * 1024).backward()  # as fp16's scaler does
    gradients = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    return outcome.loss.item(), torch.cat(gradients) / 1024


def gradients(report) -> None:
    """The whole model's gradient in fp16 and bf16, eager and compiled, against fp32; fp32 against fp64."""
    torch.manual_seed(0)
    model = make_model(report)
    (batch,) = make_batches(model, 1, 8 if report.tiny else _SAMPLES, report.device)
    exact = copy.deepcopy(model).double()
    wide = copy.copy(batch)
    object.__setattr__(wide, "image", (batch.image.double() - exact.pixel_mean) / exact.pixel_std)
    with torch.autocast(report.device.type, enabled=False):
        loss64, gradient64 = _gradient(exact, wide, None, report.device)
    loss32, gradient32 = _gradient(model, batch, None, report.device)
    fused = make_model(report, **compiled(report))
    fused.load_state_dict(model.state_dict())
    rows = [("fp32", loss32, gradient32, loss64, gradient64, 1e-3)]
    for dtype, limit in ((torch.float16, 0.05), (torch.bfloat16, 0.15)):
        for name, one in (("eager", model), ("compiled", fused)):
            # One type: compiling both takes a minute, and bf16 is what a run takes.
            if name == "compiled" and (not compiled(report) or dtype != torch.bfloat16 or report.left < 60):
                continue
            rows.append((f"{dtype} {name}", *_gradient(one, batch, dtype, report.device), loss32, gradient32, limit))
    for name, loss_, gradient, right_loss, right, limit in rows:
        error = ((gradient - right).norm() / right.norm()).item()
        report.check(name, error < limit, f"gradient off by {error:.1e}, loss by {abs(loss_ / right_loss - 1):.1e}")


def one_rank(report) -> None:
    """The collectives' code with one rank (NCCL on a GPU): the same loss, and a step inside DistributedDataParallel."""
    from torch.nn.parallel import DistributedDataParallel

    features = _features(64, 32, report.device)
    scale = torch.tensor(20.0, device=report.device)
    alone = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(report.device)(*features, scale)
    dist.init_process_group(
        "nccl" if report.device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    try:
        module = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(report.device)
        grouped = module(*features, scale)
        values = torch.ones(3, device=report.device)
        dist.all_reduce(values)
        same = alone.loss.item() == grouped.loss.item() and values.tolist() == [1, 1, 1]
        report.check("loss and all-reduce", same, f"{alone.loss.item():.6f} and {grouped.loss.item():.6f}")
        model = make_model(report)
        step = make_step(model, report.device, parallel_model=DistributedDataParallel(model))
        (batch,) = make_batches(model, 1, 8, report.device)
        result = step([batch], 1e-3)
        report.check("a step", not result.skipped.item(), f"gradient norm {result.grad_norm.item():.3f}")
    finally:
        dist.destroy_process_group()


def waiting(report) -> None:
    """Ten steps in which the host may not wait for the device (torch.cuda.set_sync_debug_mode)."""
    model = make_model(report, **compiled(report))
    step = make_step(model, report.device)
    batches = make_batches(model, 2, 8 if report.tiny else _SAMPLES, report.device)
    for number in range(15):
        if number == 5 and report.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        result = step(batches if number % 2 else batches[:1], 1e-4)
    if report.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    report.check("ten steps, accumulated ones too", not result.skipped.item(), "no wait")
