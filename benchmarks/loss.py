"""Time and peak memory of the loss, forward + backward: ours, open_clip's ClipLoss once per path, and the plain form.

    python benchmarks/loss.py                         # N = 1024 … 32768, D = 512, on the GPU if there is one
    python benchmarks/loss.py --sizes 8192 --rounds 5
    python benchmarks/loss.py --one-thread            # CPU seconds of one thread: for a machine shared with others
    python benchmarks/loss.py --sizes 8192 --busy 1   # while another process keeps one core busy, as loaders do

The plain form writes out this loss as released: the logits of both directions computed apart, two paths, autograd for
the rest. ClipLoss is the same without weights. Each measurement runs in a process of its own, so that the peak is its
own; the contestants take turns, and the best of all rounds counts. Memory is what a step adds to the features.
What would not fit into the free memory is skipped, and the table reports it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparisons import output_of, record

from alip.command import CommandParser, count, natural
from alip.distributed import check_device
from alip.errors import run_command

SCALE = 50.0
# Matrices of N × N fp32 that stand at the peak: to leave out what cannot fit, before it brings the machine down.
MATRICES = {"ours": 0, "ClipLoss": 6, "plain": 8}


def make_step(contestant: str, inputs: list[Tensor], weights: list[Tensor], settings: dict) -> Callable[[], Tensor]:
    """One forward pass of the contestant. weights: (2, N), the plain form's, such as the gates give; settings: ours."""
    image, text, caption, scale = inputs
    if contestant == "ours":
        from alip.loss import AdaptiveContrastiveLoss

        loss_fn = AdaptiveContrastiveLoss(**settings)
        return lambda: loss_fn(image, text, caption, scale).loss
    if contestant == "ClipLoss":
        from open_clip.loss import ClipLoss

        clip_loss = ClipLoss()
        return lambda: clip_loss(image, text, scale) + clip_loss(image, caption, scale)

    labels = torch.arange(len(image), device=image.device)

    def path(texts: Tensor, weight: Tensor) -> Tensor:
        per_image = F.cross_entropy(scale * image @ texts.T, labels, reduction="none")
        per_text = F.cross_entropy(scale * texts @ image.T, labels, reduction="none")
        return (weight * (per_image + per_text) / 2).mean()

    return lambda: path(text, weights[0]) + path(caption, weights[1])


class Peak:
    """Bytes that this process held at most since `start`: of the GPU, or of its memory by the kernel's account."""

    def __init__(self, device: torch.device):
        self.device = device

    def _read(self, field: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(field + ":"))

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
            self.before = self._read("VmRSS")

    def stop(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return self._read("VmHWM") - self.before


def measure(
    contestant: str, n: int, dim: int, repeats: int, one_thread: bool, device: torch.device, settings: dict
) -> dict:
    """Best seconds of `repeats` steps after one warm-up, and the warm-up's peak of bytes."""
    clock = time.perf_counter
    if one_thread:
        torch.set_num_threads(1)
        clock = time.process_time
    generator = torch.Generator().manual_seed(0)

    def leaf() -> Tensor:
        return F.normalize(torch.randn(n, dim, generator=generator), dim=1).to(device).requires_grad_()

    inputs = [leaf(), leaf(), leaf(), torch.tensor(SCALE, device=device, requires_grad=True)]
    weights = list(torch.rand(2, n, generator=generator).to(device))
    small = [i[:32].detach().requires_grad_() for i in inputs[:3]] + [inputs[3]]
    make_step(contestant, small, [w[:32] for w in weights], settings)().backward()  # libraries load before the account
    forward = make_step(contestant, inputs, weights, settings)

    def step() -> None:
        for leaf in inputs:
            leaf.grad = None
        forward().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    peak = Peak(device)
    peak.start()
    step()
    extra = peak.stop()
    seconds = []
    for _ in range(repeats):
        start = clock()
        step()
        seconds.append(clock() - start)
    return {"seconds": min(seconds), "bytes": extra}


def free_bytes(device: torch.device) -> int:
    """Memory that a new process could take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def our_settings(arguments: argparse.Namespace) -> dict:
    """Those knobs of ours that were asked for."""
    settings = {"chunk_size": arguments.chunk, "logits_cache_bytes": arguments.cache and arguments.cache << 20}
    return {name: value for name, value in settings.items() if value is not None}


def run_apart(contestant: str, n: int, arguments: argparse.Namespace) -> dict | None:
    """`measure` in a process of its own; None where it would not fit."""
    if 4 * n * n * MATRICES[contestant] > 0.8 * free_bytes(torch.device(arguments.device)):
        return None
    job = [
        contestant,
        n,
        arguments.dim,
        arguments.repeats,
        arguments.one_thread,
        arguments.device,
        our_settings(arguments),
    ]
    command = [sys.executable, __file__, "--measure", json.dumps(job)]
    return json.loads(output_of(command).splitlines()[-1])


@contextlib.contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Keeps `count` of the cores that this process may use busy with something else."""
    cores = sorted(os.sched_getaffinity(0))[:count] if count else []
    code = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code, str(core)]) for core in cores]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def busy_in_words(count: int) -> str:
    """What follows the name of a measurement made while `count` cores were busy."""
    return f", {count} core{'s' * (count != 1)} busy" if count else ""


def best_of(contestant_runs: list[dict | None]) -> dict | None:
    runs = [run for run in contestant_runs if run]
    return {key: min(run[key] for run in runs) for key in ("seconds", "bytes")} if runs else None


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=count, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--dim", type=count, default=512)
    parser.add_argument("--chunk", type=count, help="our chunk size (default: by device)")
    parser.add_argument(
        "--cache", type=natural, help="MiB of logits that ours keeps for the backward pass (default: 64)"
    )
    parser.add_argument("--repeats", type=count, default=3, help="timed steps per process")
    parser.add_argument("--rounds", type=count, default=2, help="processes per contestant and size, taking turns")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one-thread", action="store_true", help="one thread, its CPU seconds instead of the clock's")
    parser.add_argument("--busy", type=natural, default=0, metavar="K", help="keep K cores busy meanwhile (Linux)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one measurement, in this process
    arguments = parser.parse_args()
    if arguments.measure:
        *job, device, settings = json.loads(arguments.measure)
        print(json.dumps(measure(*job, torch.device(device), settings)))
        return

    check_device(arguments.device)
    where = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else f"CPU ({platform.machine()})"
    threads = "1 thread, CPU time" if arguments.one_thread else f"{torch.get_num_threads()} threads"
    if arguments.busy:
        threads += f"{busy_in_words(arguments.busy)} with something else"
    print(f"{where}, {threads}, torch {torch.__version__}, D = {arguments.dim}, fp32")
    print("forward + backward            seconds                     extra MB               plain / ours  plain / ours")
    print("     N       ours  ClipLoss     plain       ours  ClipLoss     plain          seconds        memory")
    with busy_cores(arguments.busy):
        for n in arguments.sizes:
            compare(n, arguments)


def compare(n: int, arguments: argparse.Namespace) -> None:
    """One size: the contestants in turn, and the line of the table."""
    under = busy_in_words(arguments.busy)
    runs: dict[str, list] = {name: [] for name in MATRICES}
    for _ in range(arguments.rounds):
        for name in MATRICES:
            runs[name].append(run_apart(name, n, arguments))
    best = {name: best_of(results) for name, results in runs.items()}
    for name, results in runs.items():
        fitting = [one for one in results if one]
        if fitting:
            record(f"loss, N = {n:,}{under}", name, "s", [one["seconds"] for one in fitting], more_is_better=False)
            megabytes = [one["bytes"] / 1e6 for one in fitting]
            record(f"loss, N = {n:,}{under}, memory", name, "MB", megabytes, more_is_better=False)
    seconds = [f"{b['seconds']:10.3f}" if b else "         -" for b in best.values()]
    memory = [f"{b['bytes'] / 1e6:10.0f}" if b else "         -" for b in best.values()]
    ours, plain = best["ours"], best["plain"]
    ratios = [f"{plain[key] / max(ours[key], 1e-9):10.2f} ×" if plain else "  no room" for key in ours]
    print(f"{n:6d} " + "".join(seconds) + " " + "".join(memory) + "      " + "   ".join(ratios), flush=True)


if __name__ == "__main__":
    run_command(main)
