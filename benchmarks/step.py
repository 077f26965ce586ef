"""Pairs per second of one training step: ours, ours with padding, open_clip's model padded, and the released design.

    python benchmarks/step.py [--batch-size 32] [--rounds 5] [--precisions fp32 bf16] [--device cpu]

A step is forward, loss, backward, gradient clipping and AdamW, on synthetic images and texts of realistic lengths.
The variants share their weights and take turns, one step each, on the same batch, so that whatever else the machine
does hits them alike. The released design is re-created from parts: padded texts in two passes, gradient checkpointing
always on, full logits both ways. Its optimiser and open_clip's are torch's default AdamW; ours is the fused one that
our trainer uses.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip.model import CLIP
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model
from alip.tokens import lengths

START, END, CONTEXT = 49406, 49407, 77


@dataclass
class Batch:
    """image (B, 3, H, W) fp32, text and caption tokens (B, 77) int64."""

    image: torch.Tensor
    text: torch.Tensor
    caption: torch.Tensor


@dataclass
class Variant:
    """One way to train: `features(batch)` gives the four outputs, `loss` takes them; `operations` per step."""

    name: str
    features: Callable
    loss: Callable
    optimizer: torch.optim.Optimizer
    operations: float


def random_tokens(token_lengths: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Token rows (n, 77) with these lengths: start, random ids, end, zeros."""
    rows = torch.randint(1, START, (len(token_lengths), CONTEXT), generator=generator)
    rows[torch.arange(CONTEXT) >= token_lengths[:, None]] = 0
    rows[:, 0] = START
    rows[torch.arange(len(rows)), token_lengths - 1] = END
    return rows


def batches(size: int, image_size: int, device: str) -> Iterator[Batch]:
    """Endless batches. Raw texts: log-normal lengths (mean about 16) and 3 % of 77 tokens; captions: 10 to 15."""
    generator = torch.Generator().manual_seed(0)
    while True:
        raw = (torch.randn(size, generator=generator) * 0.65 + 2.6).exp().round().clamp(4, CONTEXT).long()
        raw[torch.rand(size, generator=generator) < 0.03] = CONTEXT
        caption = torch.randint(10, 16, (size,), generator=generator)
        image = torch.randn(size, 3, image_size, image_size, generator=generator)
        parts = (image, random_tokens(raw, generator), random_tokens(caption, generator))
        yield Batch(*(part.to(device) for part in parts))


def tower_operations(width: int, layers: int, sequences: int, tokens: float, attended: float, pooled: bool) -> float:
    """Forward operations (two per multiply-add) of a transformer over `tokens` rows, `attended` keys for each.

    pooled: the last block computes only keys and values for all rows, and the rest for one row per sequence.
    """
    row = 24 * width**2 + 4 * width * attended
    if not pooled:
        return layers * tokens * row
    last = 4 * width**2 * tokens + (20 * width**2 + 4 * width * attended) * sequences
    return (layers - 1) * tokens * row + last


def step_operations(
    model: nn.Module, size: int, real_tokens: float, padded: bool = False, pooled_image: bool = True, factor: int = 3
) -> float:
    """Operations of one step: `factor` times the forward pass (3 with its backward pass, 4 with checkpointing).

    padded: texts at full length and through whole blocks. pooled_image: the image tower's last block as in ours.
    """
    vision, text = model.visual, model.transformer
    patches = vision.positional_embedding.shape[0]
    embed = 2 * vision.conv1.weight[0].numel() * vision.transformer.width * (patches - 1) * size
    tower = vision.transformer
    image = tower_operations(tower.width, tower.layers, size, size * patches, patches, pooled_image)
    text_tokens = 2 * size * CONTEXT if padded else real_tokens
    attended = CONTEXT if padded else real_tokens / (2 * size)
    words = tower_operations(text.width, text.layers, 2 * size, text_tokens, attended, not padded)
    return factor * (embed + image + words)


def sharing_weights(model: nn.Module, checkpointing: bool = False) -> CLIP:
    """open_clip's own model on the very same parameters."""
    config = copy.deepcopy(model.config["model_cfg"])
    with torch.device("meta"):
        twin = CLIP(**config)
    twin.register_buffer("attn_mask", model.attn_mask, persistent=False)
    for ours, theirs in zip(model.modules(), twin.modules()):
        theirs._parameters = ours._parameters
    twin.set_grad_checkpointing(checkpointing)
    return twin.train()


def released_loss(image, text, caption, logit_scale, history=(0.0, 0.0, 0.0)) -> torch.Tensor:
    """The adaptive loss with both paths' full logits, both ways, as the release computes it."""
    with torch.no_grad():
        pairs = ((text, caption), (image, text), (image, caption))
        agreement, raw, synthetic = ((a * b).sum(-1) - h for (a, b), h in zip(pairs, history))
        gated = agreement <= 0
        sample = torch.where(gated, (2 * agreement).exp(), torch.ones_like(agreement))
        weights = [sample * torch.where(gated, (2 * s).exp(), torch.ones_like(s)) for s in (raw, synthetic)]
    labels = torch.arange(len(image), device=image.device)
    total = image.new_zeros(())
    for words, weight in zip((text, caption), weights):
        rows = F.cross_entropy(logit_scale * image @ words.T, labels, reduction="none")
        columns = F.cross_entropy(logit_scale * words @ image.T, labels, reduction="none")
        total = total + (weight * (rows + columns) / 2).mean()
    return total


def build_variants(size: int, real_tokens: float, device: str, compile: bool) -> list[Variant]:
    """All variants of ViT-B/32, on one set of weights."""
    torch.manual_seed(0)
    model = create_model("ViT-B-32").to(device)
    padded = copy.copy(model)
    padded.pad_texts = True
    plain, released = sharing_weights(model), sharing_weights(model, checkpointing=True)
    fused = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    default = torch.optim.AdamW(model.parameters(), lr=1e-6)
    adaptive = AdaptiveContrastiveLoss().to(device)

    def our_loss(*features):
        return adaptive(*features).loss

    def bi_path(net):
        return lambda batch: net(batch.image, batch.text, batch.caption)

    def one_text_pass(batch):
        image = plain.encode_image(batch.image, normalize=True)
        text, caption = plain.encode_text(torch.cat([batch.text, batch.caption]), normalize=True).chunk(2)
        return image.float(), text.float(), caption.float(), plain.logit_scale.exp()

    def two_text_passes(batch):
        image = released.encode_image(batch.image, normalize=True).float()
        texts = [released.encode_text(tokens, normalize=True).float() for tokens in (batch.text, batch.caption)]
        return image, *texts, released.logit_scale.exp()

    needed = step_operations(model, size, real_tokens)
    padding = step_operations(model, size, real_tokens, padded=True)
    whole = step_operations(model, size, real_tokens, padded=True, pooled_image=False)
    recomputed = step_operations(model, size, real_tokens, padded=True, pooled_image=False, factor=4)
    variants = [Variant("ours", bi_path(model), our_loss, fused, needed)]
    if compile:
        compiled = copy.copy(model)
        compiled.compile_towers()
        variants.append(Variant("ours, compiled", bi_path(compiled), our_loss, fused, needed))
    variants += [
        Variant("ours, texts padded", bi_path(padded), our_loss, fused, padding),
        Variant("open_clip, padded", one_text_pass, our_loss, default, whole),
        Variant("released design", two_text_passes, released_loss, default, recomputed),
    ]
    return variants


def one_step(variant: Variant, batch: Batch, precision: str, device: str) -> float:
    """Seconds of one training step."""
    _finish(device)
    start = time.perf_counter()
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        features = variant.features(batch)
    variant.loss(*features).backward()
    parameters = [parameter for group in variant.optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    variant.optimizer.step()
    variant.optimizer.zero_grad(set_to_none=True)
    _finish(device)
    return time.perf_counter() - start


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def peak(precision: str, device: str) -> float:
    """Operations per second of one large matrix product here and now: what utilisation is measured against."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = 8192 if torch.device(device).type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        _finish(device)
        start = time.perf_counter()
        a @ b
        _finish(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each variant that count, after two that do not")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="add a row with torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size, device = arguments.batch_size, arguments.device

    stream = batches(size, 224, device)
    data = [next(stream) for _ in range(arguments.rounds)]
    texts = torch.cat([torch.cat([batch.text, batch.caption]) for batch in data])
    real_tokens = lengths(texts).sum().item() / len(data)
    raw = torch.cat([lengths(batch.text) for batch in data]).float()
    print(
        f"ViT-B/32, batch {size}, {arguments.threads} threads, {device}; tokens: raw text mean {raw.mean():.1f}, "
        f"longest {raw.max():.0f}; with the caption {real_tokens / size:.1f} a pair, padded {2 * CONTEXT}"
    )
    variants = build_variants(size, real_tokens, device, arguments.compile)
    seconds: dict[tuple[str, str], list[float]] = {}
    for round_number in range(-2, arguments.rounds):
        for precision in arguments.precisions:
            for variant in variants:
                elapsed = one_step(variant, data[max(round_number, 0)], precision, device)
                if round_number >= 0:
                    seconds.setdefault((precision, variant.name), []).append(elapsed)
    report(variants, arguments.precisions, seconds, size, {p: peak(p, device) for p in arguments.precisions})


def report(variants, precisions, seconds, size: int, peaks: dict[str, float]) -> None:
    """Prints pairs/s (median and best step), ratios of medians within this run, and utilisation."""
    base = {name: statistics.median(seconds[precisions[0], name]) for name in ("open_clip, padded", "released design")}
    work = {variant.name: variant.operations for variant in variants}
    needed = work["ours"]
    print(f"ratios are to {precisions[0]} of the other; operations: fewer than the released design, by count\n")
    print("| variant | precision | pairs/s | best step | × open_clip | × released | operations | utilisation |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for precision in precisions:
        for variant in variants:
            times = seconds[precision, variant.name]
            typical = statistics.median(times)
            print(
                f"| {variant.name} | {precision} | {size / typical:.2f} | {size / min(times):.2f} "
                f"| {base['open_clip, padded'] / typical:.2f} | {base['released design'] / typical:.2f} "
                f"| {work['released design'] / variant.operations:.2f} | {needed / typical / peaks[precision]:.0%} |"
            )
    for precision, value in peaks.items():
        print(f"\n{precision}: a large matrix product runs at {value / 1e9:.0f} GFLOP/s", end="")
    print("\nutilisation: operations that real tokens need, per second, over that speed")


if __name__ == "__main__":
    main()
