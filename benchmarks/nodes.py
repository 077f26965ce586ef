"""What each machine of a run reads of a dataset in an epoch: counted over training's orders, without reading.

  python benchmarks/nodes.py [--shards 64] [--samples-per-shard 20000] [--batch-size 512] [--gpus 8]

Every global batch is cut into ranks. For 1, 2, 4 and 8 machines of so many GPUs, of the machine that reads most:
  own samples    fraction of the dataset's samples that it trains on: what it reads of a shared file system
  whole shards   how often it fetches the dataset where shards are fetched whole and dropped after their window
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alip import command
from alip.data.order import create_order
from alip.errors import run_command


def machine_of(positions: np.ndarray, batch_size: int, gpus: int, machines: int) -> np.ndarray:
    """Which machine trains on the sample at each position of an epoch's order: (n,), int."""
    return positions % (batch_size * gpus * machines) // (batch_size * gpus)


def count(kind: str, machines: int, shards: int, per_shard: int, batch_size: int, gpus: int) -> dict[str, float]:
    """The two numbers for an order (see above)."""
    order = create_order(kind, np.arange(shards + 1) * per_shard, 0, 0)
    samples = shards * per_shard
    own, fetched, start = np.zeros(machines), np.zeros(machines), 0
    while start < samples:
        window = order.window_at(start)
        stop = order.start_of(window + 1) if window < order.window_at(samples - 1) else samples
        shard = order.slice(start, stop) // per_shard
        machine = machine_of(np.arange(start, stop), batch_size, gpus, machines)
        own += np.bincount(machine, minlength=machines)
        present = np.zeros((machines, shards), bool)
        present[machine, shard] = True
        fetched += present.sum(1)
        start = stop
    return {"own": float(own.max() / samples), "whole": float(fetched.max() / shards)}


def main() -> None:
    """Prints a table."""
    parser = command.CommandParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shards", type=command.count, default=64)
    parser.add_argument("--samples-per-shard", type=command.count, default=20_000)
    parser.add_argument("--batch-size", type=command.count, default=512, help="of a GPU")
    parser.add_argument("--gpus", type=command.count, default=8, help="of a machine")
    args = parser.parse_args()
    print("order     machines   own samples   whole shards")
    for kind in ("shards", "blocks"):
        for machines in (1, 2, 4, 8):
            sizes = (args.shards, args.samples_per_shard, args.batch_size, args.gpus)
            found = count(kind, machines, *sizes)
            line = f"{kind:9} {machines:8} {found['own']:12.1%} {found['whole']:13.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
