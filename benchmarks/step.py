"""Samples per second of one training step: ours, ours with padding, open_clip's model padded, and the released design.

    python benchmarks/step.py [--batch-size 32] [--turns 3] [--precisions fp32 bf16] [--device cpu]

Without flags: 32 samples on a CPU and 512 on a GPU, there with a compiled row; bf16 where the hardware has it.

A step is forward, loss, backward, gradient clipping and AdamW, on synthetic images and texts of realistic lengths.
The variants take turns, and each runs alone, in a process of its own, on the same batches: as in a real run, where ours
sets up its process as train.py does (threads, memory) and takes train.py's own step. The released design is re-created
from parts: padded texts in two passes, gradient checkpointing always on, full logits both ways. Its optimiser and
open_clip's are torch's default AdamW, ours is the fused one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from open_clip.model import CLIP
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparisons import in_hardware, record

from alip.command import CommandParser, count, natural
from alip.data.batch import Batch
from alip.distributed import check_device
from alip.errors import run_command
from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model
from alip.model.compilation import resolve_compile
from alip.tokens import lengths
from alip.train.optimizer import create_optimizer
from alip.train.setup import set_up
from alip.train.step import TrainStep

START, END, CONTEXT = 49406, 49407, 77


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
        yield Batch(*(part.to(device) for part in parts), torch.arange(size))


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


def our_step(name: str, device: str, precisions: list[str], **options) -> Callable:
    """train.py's step, set up as there: step(batch, precision)."""
    target = torch.device(device)
    set_up(target, precisions[-1], seed=0, deterministic=False, cpu_threads=torch.get_num_threads())
    model = create_model(name, **options).to(target)
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(target)
    optimizer = create_optimizer(model, lr=1e-6)
    steps = {p: TrainStep(model, loss, optimizer, target, precision=p) for p in precisions}
    return lambda batch, precision: steps[precision]([batch], 1e-6)


def open_clip_step(name: str, device: str, checkpointing: bool, text_passes: int, loss: Callable) -> Callable:
    """open_clip's own model with padded texts, in one or two passes through the text tower: step(batch, precision)."""
    torch.manual_seed(0)
    net = CLIP(**create_model(name).config["model_cfg"]).to(device).train()
    net.set_grad_checkpointing(checkpointing)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6)

    def step(batch: Batch, precision: str) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            image = net.encode_image(batch.image, normalize=True)
            words = torch.cat([batch.text_tokens, batch.caption_tokens]).chunk(text_passes)
            text, caption = torch.cat([net.encode_text(part, normalize=True) for part in words]).chunk(2)
        loss(image.float(), text.float(), caption.float(), net.logit_scale.exp()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def build(name: str, model: str, device: str, precisions: list[str]) -> Callable:
    """The variant of that name: step(batch, precision)."""
    if name == "open_clip, padded":
        adaptive = AdaptiveContrastiveLoss().to(device)
        return open_clip_step(model, device, False, 1, lambda *features: adaptive(*features).loss)
    if name == "released design":
        return open_clip_step(model, device, True, 2, released_loss)
    options = {"ours, compiled": {"compile": True}, "ours, texts padded": {"pad_texts": True}}.get(name, {})
    return our_step(model, device, precisions, **options)


def count_operations(name: str, size: int, real_tokens: float) -> dict[str, float]:
    """Operations of one step of each variant, by name."""
    model = create_model(name)
    needed = step_operations(model, size, real_tokens)
    return {
        "ours": needed,
        "ours, compiled": needed,
        "ours, texts padded": step_operations(model, size, real_tokens, padded=True),
        "open_clip, padded": step_operations(model, size, real_tokens, padded=True, pooled_image=False),
        "released design": step_operations(model, size, real_tokens, padded=True, pooled_image=False, factor=4),
    }


def run_variant(pipe, name: str, arguments: argparse.Namespace) -> None:
    """A variant's own process: sends back the seconds of each counted step, by precision."""
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    step = build(name, arguments.model, device, arguments.precisions)
    stream = batches(arguments.batch_size, 224, device)
    data = [next(stream) for _ in range(arguments.rounds)]
    seconds: dict[str, list[float]] = {precision: [] for precision in arguments.precisions}
    for precision, times in seconds.items():
        for number in range(-arguments.warmup, arguments.rounds):
            _finish(device)
            start = time.perf_counter()
            step(data[number % len(data)], precision)
            _finish(device)
            if number >= 0:
                times.append(time.perf_counter() - start)
    pipe.send(seconds)


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
    parser = CommandParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="ViT-B-32", help="open_clip name or JSON file, for images of 224 pixels")
    on_gpu, precisions = torch.cuda.is_available(), [name.removeprefix("amp_") for name in in_hardware()]
    parser.add_argument("--batch-size", type=count, default=512 if on_gpu else 32)
    parser.add_argument("--turns", type=count, default=3, help="how often each variant's process is started")
    parser.add_argument("--rounds", type=count, default=3, help="steps that count in each turn and precision")
    parser.add_argument("--warmup", type=natural, default=2, help="steps before them that do not")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=precisions)
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--threads", type=count, default=2, help="CPU threads")
    compiles = on_gpu and resolve_compile("auto", torch.device("cuda", 0))
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=compiles, help="add a row with torch.compile"
    )
    arguments = parser.parse_args()
    check_device(arguments.device)
    torch.set_num_threads(arguments.threads)
    size, device = arguments.batch_size, arguments.device

    stream = batches(size, 224, device)
    data = [next(stream) for _ in range(arguments.rounds)]
    texts = torch.cat([torch.cat([batch.text_tokens, batch.caption_tokens]) for batch in data])
    real_tokens = lengths(texts).sum().item() / len(data)
    raw = torch.cat([lengths(batch.text_tokens) for batch in data]).float()
    print(
        f"{Path(arguments.model).stem}, batch {size}, {arguments.threads} threads, {device}; tokens: "
        f"raw text mean {raw.mean():.1f}, longest {raw.max():.0f}; "
        f"with the caption {real_tokens / size:.1f} a pair, padded {2 * CONTEXT}"
    )
    operations = count_operations(arguments.model, size, real_tokens)
    names = [name for name in operations if arguments.compile or name != "ours, compiled"]
    seconds = measure(names, arguments)
    report(operations, names, seconds, size, {p: peak(p, device) for p in arguments.precisions})


def measure(names: list[str], arguments: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """Seconds of each counted step, by (precision, variant)."""
    context = multiprocessing.get_context("spawn")
    seconds: dict[tuple[str, str], list[float]] = {(p, name): [] for p in arguments.precisions for name in names}
    for _ in range(arguments.turns):
        for name in names:
            pipe, other_end = context.Pipe()
            process = context.Process(target=run_variant, args=(other_end, name, arguments))
            process.start()
            other_end.close()  # so that a process that died is an end of file here, not silence
            for precision, times in pipe.recv().items():
                seconds[precision, name] += times
            process.join()
    return seconds


def report(operations: dict[str, float], names, seconds, size: int, peaks: dict[str, float]) -> None:
    """Prints samples/s (median and best step), ratios of medians within this run, and utilisation."""
    first = next(iter(peaks))
    base = {name: statistics.median(seconds[first, name]) for name in ("open_clip, padded", "released design")}
    print(f"ratios are to {first} of the other; operations: fewer than the released design, by count\n")
    print("| variant | precision | samples/s | best step | × open_clip | × released | operations | utilisation |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for precision, fastest in peaks.items():
        for name in names:
            times = seconds[precision, name]
            typical = statistics.median(times)
            record(f"training step, {precision}", name, "samples/s", [size / one for one in times])
            print(
                f"| {name} | {precision} | {size / typical:.2f} | {size / min(times):.2f} "
                f"| {base['open_clip, padded'] / typical:.2f} | {base['released design'] / typical:.2f} "
                f"| {operations['released design'] / operations[name]:.2f} "
                f"| {operations['ours'] / typical / fastest:.0%} |"
            )
    for precision, fastest in peaks.items():
        print(f"\n{precision}: a large matrix product runs at {fastest / 1e9:.0f} GFLOP/s", end="")
    print("\nutilisation: operations that real tokens need, per second, over that speed")


if __name__ == "__main__":
    run_command(main)
