"""How cost grows: time and memory of a training step with the batch and the texts' length, of the data's order with
the dataset's size. Nothing may grow faster than its work.

    python benchmarks/growth.py [--model ViT-B-32] [--batch-sizes 8 16 32] [--lengths 8 16 32 77] [--rounds 3]

Each measurement is a process of its own, and they take turns. (With the number of ranks: benchmarks/scaling.py.)
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparisons import record

from alip.command import CommandParser
from alip.data.batch import Batch
from alip.errors import run_command
from alip.text_table import markdown_table


def step_cost(model_name: str, size: int, length: int) -> dict[str, float]:
    """Seconds of a training step in bf16, the best of two, and the process's peak of memory."""
    from step import random_tokens

    from alip.loss import AdaptiveContrastiveLoss
    from alip.model import create_model
    from alip.train.optimizer import create_optimizer
    from alip.train.step import TrainStep

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model(model_name).to(device)
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(device)
    step = TrainStep(model, loss, create_optimizer(model, lr=1e-6), device, precision="amp_bf16")
    generator = torch.Generator().manual_seed(0)
    tokens = random_tokens(torch.full((2 * size,), length), generator)
    image = torch.randn(size, 3, model.image_size, model.image_size, generator=generator)
    batch = Batch(*(part.to(device) for part in (image, *tokens.chunk(2))), torch.arange(size))
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        step([batch], 1e-6).loss_finite.item()
        best = min(best, time.perf_counter() - start)
    if device.type == "cuda":
        return {"seconds": best, "bytes": torch.cuda.max_memory_allocated()}
    return {"seconds": best, "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def order_cost(samples: int) -> dict[str, float]:
    """Seconds until the first batch of an epoch's order is known, and the bytes that the order holds."""
    from alip.data.order import EpochOrder

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    EpochOrder(samples, 0, 0).slice(samples // 2, samples // 2 + 512)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def apart(job: list) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--measure", json.dumps(job)]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def main() -> None:
    """Prints a table of each."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip name or JSON file")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 32, 77], help="tokens of every text")
    parser.add_argument("--dataset-sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7, 10**8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        kind, *job = json.loads(args.measure)
        print(json.dumps(order_cost(*job) if kind == "order" else step_cost(*job)))
        return
    middle = args.batch_sizes[len(args.batch_sizes) // 2]
    families = {
        "samples of a step": [(n, ["step", args.model, n, 16]) for n in args.batch_sizes],
        "tokens of a text": [(n, ["step", args.model, middle, n]) for n in args.lengths],
        "samples of the dataset (order)": [(n, ["order", n]) for n in args.dataset_sizes],
    }
    for family, jobs in families.items():
        found: dict[int, list[dict[str, float]]] = {n: [] for n, _ in jobs}
        for _ in range(args.rounds):
            for n, job in jobs:
                found[n].append(apart(job))
        rows, first = [], None
        for n, runs in found.items():
            seconds = [one["seconds"] for one in runs]
            megabytes = max(one["bytes"] for one in runs) / 1e6
            typical = statistics.median(seconds)
            first = first or (n, typical)
            times = (f"{typical / first[1]:.2f}", f"{n / first[0]:.2f}")
            rows.append([f"{n:,}", f"{typical:.4g}", *times, f"{megabytes:.0f}"])
            record(f"growth: {family}", f"{n:,}", "s", seconds, more_is_better=False)
        print(markdown_table([family, "s", "times the first", "work, times the first", "MB"], rows) + "\n", flush=True)


if __name__ == "__main__":
    run_command(main)
