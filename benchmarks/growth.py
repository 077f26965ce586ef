"""How cost grows: time and memory of a training step with the batch, the texts' length and the ranks; of opening a
dataset with its shards; of an epoch's order with its samples. Nothing may grow faster than its work.

    python benchmarks/growth.py [--model ViT-B-32] [--batch-sizes 8 16 32] [--lengths 8 16 32 77] [--rounds 3]

Each measurement is a process of its own, and they take turns. Ranks have one thread and as many samples each, so their
work grows with their number, and the time too once there are more ranks than cores. (GPUs: one rank each. Many
machines, on paper: benchmarks/scaling.py.)
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparisons import output_of, record

from alip import plot_style
from alip.command import CommandParser, count, file_path
from alip.data.batch import Batch
from alip.errors import run_command
from alip.model.precision import canonical, resolve
from alip.text_table import markdown_table


def step_cost(
    model_name: str, precision: str, size: int, length: int, device: torch.device | None = None, parallel: bool = False
) -> dict[str, float]:
    """Seconds of a training step, the best of three, and the process's peak of memory.

    parallel: inside DistributedDataParallel, one of the ranks of the process group that there is.
    """
    from step import random_tokens

    from alip.loss import AdaptiveContrastiveLoss
    from alip.model import create_model
    from alip.train.optimizer import create_optimizer
    from alip.train.step import TrainStep

    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model(model_name).to(device)
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True).to(device)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if parallel else None
    optimizer = create_optimizer(model, lr=1e-6)
    step = TrainStep(model, loss, optimizer, device, precision=precision, parallel_model=wrapped)
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


def ranks_cost(model_name: str, precision: str, size: int, ranks: int) -> dict[str, float]:
    """`step_cost` of `size` samples on each of so many ranks: of the slowest, and of the one with most memory."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (model_name, precision, size, ranks, folder), nprocs=ranks)
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    return {name: max(one[name] for one in found) for name in ("seconds", "bytes")}


def _rank(rank: int, model_name: str, precision: str, size: int, ranks: int, folder: str) -> None:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method=store, rank=rank, world_size=ranks)
    try:
        found = step_cost(model_name, precision, size, 16, device, parallel=True)
    finally:
        dist.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def make_shards(folder: Path, shards: int, per_shard: int = 256) -> None:
    """A dataset of so many shards in `folder`, each with `per_shard` images of 16 pixels."""
    from alip.data.recordio import Writer, pack
    from alip.tokens import pack_label, tokenize
    from tests.helpers.shards import encoded, make_image

    label = pack_label(*tokenize(["a raw text", "its caption"]).numpy())
    image = encoded(make_image(0, 16, 16), quality=90)
    for shard in range(shards):
        with Writer(folder / f"{shard:05d}.rec", folder / f"{shard:05d}.idx") as writer:
            for number in range(per_shard):
                writer.write(pack(label, image, number))


def shards_cost(shards: int) -> dict[str, float]:
    """Seconds from nothing to the records of a first batch of 512, and the memory that this takes."""
    from alip.data.order import create_order
    from alip.data.sample_reader import Records
    from alip.data.shards import load_manifest

    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder), shards)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        records = Records(load_manifest(folder), 49408)
        records.check()
        order = create_order("blocks", records.manifest.starts, 0, 0)
        records.read(order.slice(0, min(512, records.manifest.samples)))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


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
    return json.loads(output_of(command).splitlines()[-1])


MEASURES = {"step": step_cost, "ranks": ranks_cost, "shards": shards_cost, "order": order_cost}


def families(args: argparse.Namespace) -> dict[str, list[tuple[int, list]]]:
    """By what grows: its values, and what is measured for each of them."""
    middle = args.batch_sizes[len(args.batch_sizes) // 2]
    most = torch.cuda.device_count() or max(args.ranks)
    model = (args.model, resolve(args.precision, torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    return {
        "samples of a step": [(n, ["step", *model, n, 16]) for n in args.batch_sizes],
        "tokens of a text": [(n, ["step", *model, middle, n]) for n in args.lengths],
        "ranks": [(n, ["ranks", *model, args.rank_batch, n]) for n in args.ranks if n <= most],
        "shards": [(n, ["shards", n]) for n in args.shards],
        "samples of the dataset (order)": [(n, ["order", n]) for n in args.dataset_sizes],
    }


def measure(family: str, jobs: list[tuple[int, list]], rounds: int) -> tuple[str, list[tuple[float, float]]]:
    """The table of a family, whose rows take turns; and of each row work and time, as times of the first."""
    found: dict[int, list[dict[str, float]]] = {n: [] for n, _ in jobs}
    for _ in range(rounds):
        for n, job in jobs:
            found[n].append(apart(job))
    rows, points, first = [], [], None
    for n, runs in found.items():
        seconds = [one["seconds"] for one in runs]
        megabytes = max(one["bytes"] for one in runs) / 1e6
        typical = statistics.median(seconds)
        first = first or (n, typical)
        points.append((n / first[0], typical / first[1]))
        times = (f"{typical / first[1]:.2f}", f"{n / first[0]:.2f}")
        rows.append([f"{n:,}", f"{typical:.4g}", *times, f"{megabytes:.0f}"])
        record(f"growth: {family}", f"{n:,}", "s", seconds, more_is_better=False)
    return markdown_table([family, "s", "times the first", "work, times the first", "MB"], rows), points


def draw(found: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Time over work, both as times of the first, for each family; above the line cost grows faster than its work."""
    with plot_style.figure(path, plot_style.PAGE, 3.2) as figure:
        axes = figure.add_subplot()
        for (family, points), colour, marker in zip(found.items(), plot_style.SERIES, plot_style.MARKERS):
            axes.plot(*zip(*points), color=colour, marker=marker, markersize=4, label=family)
        most = max(work for points in found.values() for work, _ in points)
        axes.plot([1, most], [1, most], color=plot_style.GREY, linestyle="--", linewidth=0.8, label="as the work")
        axes.set(xscale="log", yscale="log", xlabel="work, times the first", ylabel="time, times the first")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(lambda value, _: "")
        axes.legend()


def main() -> None:
    """Prints a table of each."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip name or JSON file")
    scale = 32 if torch.cuda.is_available() else 1  # a GPU's batches
    parser.add_argument("--batch-sizes", type=count, nargs="+", default=[scale * n for n in (8, 16, 32, 64)])
    parser.add_argument("--lengths", type=count, nargs="+", default=[8, 16, 32, 77], help="tokens of every text")
    parser.add_argument("--ranks", type=count, nargs="+", default=[1, 2])
    parser.add_argument("--rank-batch", type=count, default=8 * scale, help="samples of each rank")
    parser.add_argument("--shards", type=count, nargs="+", default=[1, 4, 16, 64], help="of 256 samples each")
    parser.add_argument("--dataset-sizes", type=count, nargs="+", default=[10**5, 10**6, 10**7, 10**8])
    parser.add_argument("--precision", type=canonical, default="auto", help="auto, amp_bf16, amp or fp32")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--output", type=file_path, help="of a plot, without suffix")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        kind, *job = json.loads(args.measure)
        print(json.dumps(MEASURES[kind](*job)))
        return
    found = {}
    for family, jobs in families(args).items():
        table, found[family] = measure(family, jobs, args.rounds)
        print(table + "\n", flush=True)
    if args.output:
        draw(found, args.output)


if __name__ == "__main__":
    run_command(main)
