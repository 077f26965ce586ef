"""Where a training step's time goes: operations by what they are for, as a table and a plot.

    python benchmarks/breakdown.py [--model ViT-B-32] [--batch-size 32] [--steps 2] [--output docs/images/step_time]

Measured with torch.profiler on the CPU or the GPU, after a warm-up step; in bf16 where the hardware has it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparisons import record
from profiled import own_times
from step import batches

from alip import plot_style
from alip.command import CommandParser, count, file_path
from alip.errors import run_command
from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model
from alip.model.precision import canonical, resolve
from alip.text_table import markdown_table
from alip.train.optimizer import create_optimizer
from alip.train.setup import set_up
from alip.train.step import TrainStep

# The first group whose words are in an operation's name has it.
GROUPS = {
    "optimizer, gradient norm": ("adam", "vector_norm", "foreach", "lerp"),
    "matrix products": ("mm", "linear", "gemm", "cutlass", "nvjet", "conv", "einsum"),
    "attention": ("softmax", "flash", "attention", "masked_fill"),
    "normalisation": ("layer_norm", "batch_norm", "native_norm"),
    "GELU": ("gelu",),
    "copies and casts": ("copy", "cat", "clone", "index", "gather", "scatter", "memcpy", "contiguous", "embedding"),
    "sums and other elementwise": ("",),
}


def group_of(name: str) -> str:
    """The group of an operation or kernel."""
    return next(group for group, words in GROUPS.items() if any(word in name.lower() for word in words))


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Milliseconds a step of each group."""
    set_up(device, args.precision, seed=0, deterministic=False, cpu_threads=0)
    model = create_model(args.model).to(device)
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(device)
    step = TrainStep(model, loss, create_optimizer(model, lr=1e-6), device, precision=args.precision)
    stream = batches(args.batch_size, model.image_size, str(device))
    data = [next(stream) for _ in range(args.steps + 1)]
    step([data[0]], 1e-6)
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as found:
        for batch in data[1:]:
            step([batch], 1e-6)
        if on_gpu:
            torch.cuda.synchronize()
    groups = dict.fromkeys(GROUPS, 0.0)
    for name, _, microseconds in own_times(found.key_averages(), on_gpu):
        groups[group_of(name)] += microseconds / 1e3 / args.steps
    return groups


def draw(groups: dict[str, float], path: Path, title: str) -> None:
    """One bar for each group."""
    total = sum(groups.values())
    with plot_style.figure(path, plot_style.PAGE, 2.2) as figure:
        axes = figure.add_subplot()
        positions = range(len(groups), 0, -1)
        axes.barh(positions, [100 * value / total for value in groups.values()], color=plot_style.BLUE)
        axes.set_yticks(positions, list(groups))
        axes.set_xlabel("% of a step's time")
        axes.set_title(title)
        for at, value in zip(positions, groups.values()):
            fraction = 100 * value / total
            axes.text(fraction, at, f" {fraction:.0f} % ({value:.0f} ms)", va="center", fontsize=7)


def main() -> None:
    """Prints the table, draws the plot."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip name or JSON file, for images of 224 pixels")
    parser.add_argument("--batch-size", type=count, default=512 if torch.cuda.is_available() else 32)
    parser.add_argument("--steps", type=count, default=2)
    parser.add_argument("--precision", type=canonical, default="auto", help="auto, amp_bf16, amp or fp32")
    parser.add_argument("--output", type=file_path, help="of the plot, without suffix")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.precision = resolve(args.precision, device)
    groups = measure(args, device)
    total = sum(groups.values())
    rows = [[group, f"{value:.1f}", f"{value / total:.0%}"] for group, value in groups.items()]
    print(markdown_table(["", "ms a step", "of the step"], rows))
    for group, value in groups.items():
        record("where a step's time goes", group, "ms", [value], more_is_better=False)
    if args.output:
        draw(groups, args.output, f"{Path(args.model).stem}, batch {args.batch_size}, {args.precision}, {device}")


if __name__ == "__main__":
    run_command(main)
