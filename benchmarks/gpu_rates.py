"""What benchmarks/gpu.py measures on a GPU: the card's ceiling, steps, the loss, decoding, kernels, what fits."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import statistics
import time
import traceback
from collections.abc import Callable, Iterator

import torch
from gpu_model import compiled, config, make_batches, make_model, make_step
from profiled import own_times
from torch.nn import functional as F

from alip.distributed import World
from alip.loss import AdaptiveContrastiveLoss
from alip.tokens import lengths
from alip.train.batch_size import CudaMemory, DryStep, find_largest
from alip.train.flops import ModelFlops


def finish(device: torch.device) -> None:
    """Waits until the device has done all that was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(job: Callable[[], object], device: torch.device, warm: int = 2, rounds: int = 5) -> list[float]:
    """Of each of `rounds` runs, after `warm` that do not count."""
    times = []
    for number in range(-warm, rounds):
        finish(device)
        start = time.perf_counter()
        job()
        finish(device)
        if number >= 0:
            times.append(time.perf_counter() - start)
    return times


def peak_gib(device: torch.device) -> float:
    """Memory that torch held at most, in GiB; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def forget(device: torch.device) -> None:
    """Frees what is unused and resets the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def ceiling(report) -> None:
    """The card's own best: one large matrix product in bf16 and fp32, and a copy in memory."""
    side = 256 if report.tiny else 8192
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(side, side, device=report.device, dtype=dtype) for _ in range(2))
        best = min(seconds(lambda a=a, b=b: a @ b, report.device, 3, 10))
        report.measured[name] = 2 * side**3 / best
        report.say(f"- {name} product of {side} x {side}: {report.measured[name] / 1e12:.1f} TFLOP/s")
    count = 1 << (20 if report.tiny else 30)
    a, b = (torch.empty(count, dtype=torch.uint8, device=report.device) for _ in range(2))
    best = min(seconds(lambda: b.copy_(a), report.device))
    report.say(f"- copy: {2 * count / best / 1e9:.0f} GB/s read and written")


def step_variants(report) -> Iterator[tuple[str, int, int, dict]]:
    """(name, samples of a micro-batch, micro-batches, model options), the most telling first."""
    small, middle, large, huge = (2, 4, 4, 8) if report.tiny else (1024, 2048, 4096, 8192)
    options = compiled(report)
    name = "compiled" if options else "not compiled"
    yield f"{name}, {large}", large, 1, options
    if options or report.tiny:
        yield f"eager, {large}", large, 1, {}
    yield f"{name}, 2 x {middle} accumulated", middle, 2, options
    yield f"{name}, checkpointing, {huge}", huge, 1, {**options, "grad_checkpointing": True}
    yield f"{name}, {middle}", middle, 1, options
    yield f"{name}, {huge}", huge, 1, options
    yield f"eager, texts padded, {middle}", middle, 1, {"pad_texts": True}
    yield f"{name}, {small}", small, 1, options


def steps(report) -> None:
    """Training steps of ViT-B/32 in bf16: samples/s, memory, and utilisation against the measured ceiling."""
    report.table(["variant", "samples/s", "ms", "spread", "GiB", "of the bf16 ceiling"], step_rows(report))


def step_rows(report) -> Iterator[list[str]]:
    """A row for each variant; one that fails does not take the others along."""
    for name, size, micro, options in step_variants(report):
        if report.left < 60 and not report.tiny:
            yield [name, f"left out: {report.left:.0f} s left", "", "", "", ""]
            continue
        forget(report.device)
        try:
            cells = measure_step(report, size, micro, options)
        except torch.OutOfMemoryError:
            cells = ["does not fit", "", "", "", ""]
        except Exception as error:
            traceback.print_exc()
            report.failed.append(name)
            cells = [f"**FAILED**: {type(error).__name__}, see above", "", "", "", ""]
        yield [name, *cells]


def measure_step(report, size: int, micro: int, options: dict) -> list[str]:
    """Cells of one row."""
    model = make_model(report, **options)
    step = make_step(model, report.device)
    batches = make_batches(model, 2 * micro, size, report.device)
    groups = [batches[:micro], batches[micro:]]
    turn = iter(range(10**6))
    times = seconds(
        lambda: step(groups[next(turn) % 2], 1e-6),
        report.device,
        warm=1 if report.tiny else 3,
        rounds=1 if report.tiny else 6,
    )
    typical = statistics.median(times)
    texts = torch.cat([part for b in batches for part in (b.text_tokens, b.caption_tokens)])
    flops = ModelFlops(model).per_sample(lengths(texts).double().mean().item()) * size * micro / typical
    used = f"{flops / report.measured['bf16']:.0%}" if "bf16" in report.measured else "ceiling not measured"
    rate = size * micro / typical
    spread = f"{(max(times) - min(times)) / typical:.0%}"
    return [f"{rate:.0f}", f"{1e3 * typical:.1f}", spread, f"{peak_gib(report.device):.1f}", used]


def loss_sizes(report) -> None:
    """The loss, forward and backward, D = 512, beside the plain form where that fits."""
    counts = [32, 64] if report.tiny else [4096, 8192, 16384, 32768, 65536]
    rows = ([count, *loss_cells(report, count, True), *loss_cells(report, count, False)] for count in counts)
    report.table(["N", "ours ms", "ours GiB", "plain ms", "plain GiB"], rows)


def loss_cells(report, count: int, ours: bool) -> list[str]:
    """Milliseconds and memory of one form of the loss."""
    device = report.device
    features = [F.normalize(torch.randn(count, 512, device=device), dim=1).requires_grad_() for _ in range(3)]
    scale = torch.tensor(50.0, device=device, requires_grad=True)
    module = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(device)
    forget(device)
    try:
        form = (lambda: module(*features, scale).loss) if ours else (lambda: plain_loss(*features, scale))
        best = min(seconds(lambda: form().backward(), device, 1, 3))
    except torch.OutOfMemoryError:
        return ["does not fit", ""]
    return [f"{1e3 * best:.1f}", f"{peak_gib(device):.2f}"]


def plain_loss(x, t, c, scale) -> torch.Tensor:
    """Both paths' full logits, both ways, without weights."""
    labels = torch.arange(len(x), device=x.device)
    return sum(F.cross_entropy(scale * a @ b.T, labels) / 2 for y in (t, c) for a, b in ((x, y), (y, x)))


def decoding(report) -> None:
    """Images/s of the loader alone, and samples/s of training from shards, end to end."""
    missing = [name for name in ("PIL", "numpy") if importlib.util.find_spec(name) is None]
    if missing:
        report.say(f"left out: {', '.join(missing)} not installed")
        return
    from gpu_shards import make_shards

    from alip.data.loader import Augmentation, create_loader

    count, size = (16, 4) if report.tiny else (4096, 512)
    make_shards(report.work / "shards", count, (64, 48) if report.tiny else (341, 256))
    model = make_model(report, **compiled(report))
    has_dali = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    rows = []
    for reader in ("dali", "torch") if has_dali else ("torch",):
        loader = create_loader(
            report.work / "shards" / "set",
            size,
            **model.input_format,
            world=World(device=report.device),
            threads=2 if report.tiny else 12,
            reader=reader,
            augmentation=Augmentation(),
        )
        alone = rate_of(report, loader, size, None)
        step = make_step(model, report.device)
        rows.append([reader, f"{alone:.0f}", f"{rate_of(report, loader, size, lambda b, s=step: s([b], 1e-6)):.0f}"])
    if not has_dali:
        report.say("DALI is not installed here: Pillow only")
    report.table(["reader", "images/s, loader alone", f"samples/s, end to end, batches of {size}"], rows)


def rate_of(report, loader, size: int, step: Callable | None) -> float:
    """Samples/s over 6 s (a dry run: two epochs), without the first batches, of which some were read ahead."""
    batches = (batch for epoch in range(2 if report.tiny else 10**6) for batch in loader.epoch(epoch))
    seen = 0
    with contextlib.closing(batches):
        for _, batch in zip(range(2 if report.tiny else 8), batches):
            if step is not None:
                step(batch)
        finish(report.device)
        start = time.perf_counter()
        for batch in batches:
            if step is not None:
                step(batch)
            seen += size
            if time.perf_counter() - start > 6:
                break
        finish(report.device)
        return seen / (time.perf_counter() - start)


def profile(report) -> None:
    """Where three steps go: the ten dearest kernels (on a CPU: operations)."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    size = 8 if report.tiny else 2048
    model = make_model(report, **compiled(report))
    step = make_step(model, report.device)
    batches = make_batches(model, 2, size, report.device)
    for batch in batches * 2:
        step([batch], 1e-6)
    on_gpu = report.device.type == "cuda"
    finish(report.device)
    with profiler(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as found:
        for batch in (*batches, batches[0]):
            step([batch], 1e-6)
        finish(report.device)
    times = own_times(found.key_averages(), on_gpu)
    total = sum(spent for *_, spent in times) or 1.0
    rows = [
        [f"`{name[:70]}`", calls, f"{spent / 3e3:.2f}", f"{spent / total:.1%}"] for name, calls, spent in times[:10]
    ]
    report.table(["kernel", "calls", "ms a step", "of all"], rows)
    found.export_chrome_trace(str(report.work / "trace.json"))
    report.say(f"trace: {report.work / 'trace.json'}")


class _TinyMemory:
    """Stands for a device with room for six samples."""

    total, margin = 6, 0

    def forget(self) -> None:
        """Nothing is held."""

    def peak(self) -> int:
        return self.total


class _TinyStep(DryStep):
    """On the stand-in."""

    def __call__(self, size: int) -> None:
        if size > _TinyMemory.total:
            raise torch.OutOfMemoryError("the stand-in is full")
        super().__call__(size)


def batch_size(report) -> None:
    """--batch-size auto: what fits, and what a sample costs in memory."""
    samples = 8 if report.tiny else 4096
    memory = _TinyMemory() if report.tiny else CudaMemory(report.device)
    options = {"samples": samples, "precision": "amp_bf16", "ema": False, "device": report.device}
    step = (_TinyStep if report.tiny else DryStep)(config(report), {}, {"lr": 1e-6}, margin=memory.margin, **options)
    report.say(f"{find_largest(samples, step, memory)}")
