"""What the training engine adds to a bare loop: the same batches, model, loss and optimiser, with and without it.

    python benchmarks/engine.py [--width 256] [--batch-size 512] [--steps 200] [--rounds 5]

A trivial model (one matrix for images, one embedding for texts), so that the towers hide nothing. "bare" is forward,
loss, backward, clip, AdamW; "engine" is Trainer with its state, schedule, meters, watch, signals, and a log line every
50 steps into metrics.jsonl and TensorBoard (no checkpoints, no loader). Rounds alternate; medians are compared. Also
printed: what accumulation costs against the big batch, and EMA.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from comparisons import record  # noqa: E402

from alip.command import CommandParser, count  # noqa: E402
from alip.data.batch import Batch  # noqa: E402
from alip.distributed import World  # noqa: E402
from alip.errors import run_command  # noqa: E402
from alip.loss import AdaptiveContrastiveLoss  # noqa: E402
from alip.model import create_model  # noqa: E402
from alip.train.checkpoints import CheckpointFolder  # noqa: E402
from alip.train.ema import EMA  # noqa: E402
from alip.train.logging import RunLog  # noqa: E402
from alip.train.meter import Meter  # noqa: E402
from alip.train.optimizer import create_optimizer  # noqa: E402
from alip.train.plan import Interval, Plan  # noqa: E402
from alip.train.run_folder import Run  # noqa: E402
from alip.train.schedule import create_schedule  # noqa: E402
from alip.train.state import TrainState  # noqa: E402
from alip.train.step import TrainStep  # noqa: E402
from alip.train.trainer import Trainer  # noqa: E402


class Trivial(nn.Module):
    """The least that is a bi-path model."""

    def __init__(self, width: int):
        super().__init__()
        self.image = nn.Linear(3 * 32 * 32, width)
        self.text = nn.EmbeddingBag(2000, width)
        self.logit_scale = nn.Parameter(torch.tensor(2.6))
        self.config = {}

    def forward(self, image, text_tokens, caption_tokens):
        features = (self.image(image.flatten(1)), self.text(text_tokens), self.text(caption_tokens))
        return (*[nn.functional.normalize(f, dim=-1) for f in features], self.logit_scale.exp())


class Same:
    """A loader that has its few batches in memory."""

    def __init__(self, batches: list[Batch], steps: int):
        self.batches, self.steps = batches, steps

    def epoch(self, epoch: int, start: int = 0):
        return (self.batches[k % len(self.batches)] for k in range(self.steps))


def make_batches(count: int, batch_size: int, device: torch.device, size: int = 32, tokens: int = 2000) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        image = torch.randn(batch_size, 3, size, size, generator=generator).to(device)
        texts = torch.randint(1, tokens, (2, batch_size, 8), generator=generator).to(device)
        batches.append(Batch(image, texts[0], texts[1], torch.arange(batch_size)))
    return batches


def make_parts(width: int, device: torch.device):
    torch.manual_seed(0)
    model = Trivial(width).to(device)
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(device)
    return model, loss, create_optimizer(model, lr=1e-4)


def bare(parts, batches: list[Batch], steps: int) -> float:
    """Seconds of the loop that anybody would write first."""
    model, loss, optimizer = parts
    parameters = list(model.parameters())
    start = time.perf_counter()
    for k in range(steps):
        batch = batches[k % len(batches)]
        optimizer.zero_grad(set_to_none=True)
        loss(*model(batch.image, batch.text_tokens, batch.caption_tokens)).loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    wait(batches[0])
    return time.perf_counter() - start


def engine(parts, batches: list[Batch], steps: int, folder: Path) -> float:
    """Seconds of the same steps in Trainer, from the first batch to the last line of the log."""
    model, loss, optimizer = parts
    device = batches[0].image.device
    size = len(batches[0].index)
    plan = Plan(steps, steps, size, steps * size, save_every=Interval(0, "steps"), log_every=50)
    log = RunLog(folder, steps)
    log.say = lambda text: None
    state = TrainState(model, loss, optimizer, Meter(device))
    step = TrainStep(model, loss, optimizer, device)
    schedule = create_schedule("one-cycle", 1e-4, steps, "0.1")
    checkpoints = CheckpointFolder(folder / "checkpoints", 1)
    trainer = Trainer(
        state, step, Same(batches, steps), schedule, plan, World(device=device), Run(folder, log, checkpoints, {})
    )
    trainer._save = lambda *_: True  # writing to a disk is not what is measured here
    start = time.perf_counter()
    trainer.train()
    wait(batches[0])
    return time.perf_counter() - start


def wait(batch: Batch) -> None:
    if batch.image.is_cuda:
        torch.cuda.synchronize()


def compare(args: argparse.Namespace, device: torch.device) -> None:
    """bare against engine."""
    batches = make_batches(4, args.batch_size, device)
    times: dict[str, list[float]] = {"bare": [], "engine": []}
    ours, theirs = make_parts(args.width, device), make_parts(args.width, device)
    with tempfile.TemporaryDirectory() as folder:
        engine(ours, batches, 10, Path(folder) / "warm")
        bare(theirs, batches, 10)
        for n in range(args.rounds):
            times["bare"].append(bare(theirs, batches, args.steps))
            times["engine"].append(engine(ours, batches, args.steps, Path(folder) / str(n)))
    milliseconds = {name: 1e3 * statistics.median(values) / args.steps for name, values in times.items()}
    for name, variant in (("engine", "ours"), ("bare", "bare loop")):
        per_step = [1e3 * value / args.steps for value in times[name]]
        record("training engine's own cost", variant, "ms a step", per_step, more_is_better=False)
    ratios = [ours / theirs for ours, theirs in zip(times["engine"], times["bare"])]
    print(f"\nupdate of {args.batch_size}, width {args.width}, {device}    ms per step   ratio")
    print(f"  bare loop                              {milliseconds['bare']:12.3f}")
    print(f"  engine                                 {milliseconds['engine']:12.3f}   {statistics.median(ratios):.3f}")


def costs(args: argparse.Namespace, device: torch.device) -> None:
    """Accumulation and EMA on a small ViT."""
    name = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 192, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
    }
    (big,) = make_batches(1, args.micro * 4, device, size=64)
    big.text_tokens[:, -1] = big.caption_tokens[:, -1] = 49407  # the end token
    tensors = (big.image, big.text_tokens, big.caption_tokens, big.index)
    small = [Batch(*piece) for piece in zip(*(tensor.chunk(4) for tensor in tensors))]
    rows = {
        "one batch of 4 x b": ([big], {}),
        "4 micro-batches of b": (small, {}),
        "one batch, --ema": ([big], {"ema": 1}),
    }
    times: dict[str, list[float]] = {row: [] for row in rows}
    steps = {}
    for row, (_, options) in rows.items():
        torch.manual_seed(0)
        model = create_model(name).to(device)
        average = EMA(model, 0.999) if options else None
        loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(device)
        steps[row] = TrainStep(model, loss, create_optimizer(model, lr=1e-4), device, ema=average)
    for _ in range(args.rounds + 1):
        for row, (batches, _) in rows.items():
            start = time.perf_counter()
            steps[row](batches, 1e-4)
            wait(big)
            times[row].append(time.perf_counter() - start)
    whole = times["one batch of 4 x b"][1:]
    print(f"\nsmall ViT, b = {args.micro}                      s per step   ratio")
    for row, values in times.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(values[1:], whole))
        print(f"  {row:38s} {statistics.median(values[1:]):12.3f}   {ratio:.3f}")


def main() -> None:
    parser = CommandParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--width", type=count, default=256)
    parser.add_argument("--batch-size", type=count, default=512)
    parser.add_argument("--steps", type=count, default=200)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--micro", type=count, default=64)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compare(args, device)
    costs(args, device)


if __name__ == "__main__":
    run_command(main)
