"""What a benchmark measured, as rows that `python -m benchmarks` collects: a script by itself only prints its tables.

`record` appends a JSON line to the file that $ALIP_BENCHMARK_ROWS names, and does nothing without it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROWS = "ALIP_BENCHMARK_ROWS"


@dataclass(frozen=True)
class Row:
    """One variant of one comparison. what: compared; variant: "ours" or a peer; values: of its runs, in `unit`;
    more_is_better: false for seconds and bytes."""

    what: str
    variant: str
    unit: str
    values: tuple[float, ...]
    more_is_better: bool

    @property
    def typical(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """(largest − smallest) / median."""
        return (max(self.values) - min(self.values)) / self.typical if self.typical else 0.0


def output_of(command: Sequence[str]) -> str:
    """What a command printed, in a process of its own; UserError with its line where it ended by a mistake."""
    from alip.errors import UserError

    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()
    if done.returncode == 2 and said:
        raise UserError(said[-1].removeprefix("error: "))
    if done.returncode:
        sys.stderr.write(done.stderr)
    done.check_returncode()
    return done.stdout


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_hardware() -> list[str]:
    """fp32, and amp_bf16 where GPU or CPU multiplies it: elsewhere a measurement would show how it is emulated."""
    import torch

    from alip.model.precision import resolve

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ["fp32", "amp_bf16"] if resolve("auto", device) == "amp_bf16" else ["fp32"]


def record(what: str, variant: str, unit: str, values: Sequence[float], more_is_better: bool = True) -> None:
    """Notes a result. See `Row`."""
    path = os.environ.get(ROWS)
    if path:
        with open(path, "a") as file:
            row = {"what": what, "variant": variant, "unit": unit, "values": list(values)}
            file.write(json.dumps({**row, "more_is_better": more_is_better}) + "\n")


def read_rows(path: Path) -> list[Row]:
    """All that was recorded in a file."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Row(**{**row, "values": tuple(row["values"])}) for row in rows]


def advantage(ours: Row, peer: Row) -> float:
    """How many times better ours is."""
    if not (ours.typical and peer.typical):
        return float("nan")
    return ours.typical / peer.typical if ours.more_is_better else peer.typical / ours.typical
