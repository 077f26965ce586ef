"""Weak scaling on paper: what a step costs per rank on many GPUs, from one rank's time, operations and link speeds.

    python benchmarks/scaling.py [--samples-per-s 6400] [--batch-size 512] [--link 450] [--network 50] [--fp32 50] ...

Nothing is measured here: one rank's samples/s is an input (measure it with benchmarks/step.py on the card), as are the
speeds. Collectives are rings, first inside a machine, then between machines; latencies and congestion are left out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alip.command import CommandParser, count
from alip.command import positive_number as positive
from alip.errors import run_command
from alip.text_table import markdown_table


@dataclass(frozen=True)
class Machine:
    """Speeds in bytes/s and operations/s. link: of a GPU to the others of its machine; network: a GPU's part of the
    machine's network, one way each; fp32: products of the loss; gpus: of one machine."""

    link: float
    network: float
    fp32: float
    gpus: int

    def gather(self, size: float, ranks: int) -> float:
        """Seconds of an all-gather or reduce-scatter whose whole has `size` bytes."""
        if ranks == 1:
            return 0.0
        inside, machines = min(ranks, self.gpus), -(-ranks // self.gpus)
        between = size / inside * (machines - 1) / machines / self.network
        return between + size * (inside - 1) / inside / self.link


@dataclass(frozen=True)
class Step:
    """One rank's part. seconds: forward and backward passes alone; parameters: their number; width: of the features;
    divided: parameters are, too (--fsdp full), and gathered in the forward and again in the backward pass."""

    batch: int
    seconds: float
    parameters: float
    width: int
    divided: bool = False

    def on(self, machine: Machine, ranks: int) -> dict[str, float]:
        """Seconds by part, on `ranks` ranks with `batch` samples each.

        loss: its products, 8 · batch · N · width per path (logits, their recomputation, two gradients), two paths.
        features: texts' and captions' features gathered, their gradients scattered back, and two numbers a column.
        gradients: an all-reduce, that is a reduce-scatter and an all-gather, which a backward pass (two thirds of a
        step) hides; if divided, two all-gathers of the parameters and a reduce-scatter, which the whole step hides.
        """
        whole = ranks * self.batch
        loss = 16 * self.batch * whole * self.width / machine.fp32
        features = 2 * machine.gather(2 * 4 * whole * self.width, ranks) + 4 * machine.gather(2 * 8 * whole, ranks)
        gradients = (3 if self.divided else 2) * machine.gather(4 * self.parameters, ranks)
        shown = max(0.0, gradients - self.seconds * (1 if self.divided else 2 / 3))
        total = self.seconds + loss + features + shown
        return {"loss": loss, "features": features, "gradients": gradients, "shown": shown, "total": total}


def table(step: Step, machine: Machine, counts: list[int]) -> str:
    """A Markdown table over the numbers of ranks."""
    rows = []
    for ranks in counts:
        found = step.on(machine, ranks)
        ms = [f"{found[name] * 1e3:.2f}" for name in ("loss", "features", "gradients", "shown", "total")]
        rate = ranks * step.batch / found["total"]
        efficiency = step.on(machine, 1)["total"] / found["total"]
        rows.append([str(ranks), f"{ranks * step.batch:,}", *ms, f"{rate:,.0f}", f"{100 * efficiency:.0f} %"])
    header = ["ranks", "global batch", "loss, ms", "features, ms", "gradients, ms", "of these not hidden, ms"]
    return markdown_table([*header, "step, ms", "samples/s", "efficiency"], rows)


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--samples-per-s", type=positive, default=6400.0, help="of one rank by itself, without its loss"
    )
    parser.add_argument("--batch-size", type=count, default=512, help="samples of one rank")
    parser.add_argument("--parameters", type=positive, default=151.3e6)
    parser.add_argument("--width", type=count, default=512, help="of the features")
    parser.add_argument("--link", type=positive, default=450.0, help="GB/s of a GPU inside its machine, one way")
    parser.add_argument("--network", type=positive, default=50.0, help="GB/s of a GPU to other machines, one way")
    parser.add_argument("--fp32", type=positive, default=50.0, help="TFLOP/s of fp32 products")
    parser.add_argument("--gpus", type=count, default=8, help="of one machine")
    parser.add_argument("--fsdp", action="store_true", help="parameters divided over all ranks")
    parser.add_argument("--ranks", type=count, nargs="+", default=[1, 8, 64, 512])
    args = parser.parse_args()
    machine = Machine(args.link * 1e9, args.network * 1e9, args.fp32 * 1e12, args.gpus)
    step = Step(args.batch_size, args.batch_size / args.samples_per_s, args.parameters, args.width, args.fsdp)
    print(table(step, machine, args.ranks))


if __name__ == "__main__":
    run_command(main)
