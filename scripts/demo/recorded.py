"""The recorded runs of benchmarks/demo_seeds.py: CLIP's numbers and answers, where the quickstart does not train it."""

from __future__ import annotations

from pathlib import Path

from alip.errors import UserError
from alip.files import read_json_lines

CLIP = Path(__file__).resolve().parents[2] / "benchmarks/notes/demo_seeds.jsonl"


def recorded_run(path: Path, objective: str = "clip-text", seed: int = 0) -> dict:
    """One run: objective, seed, steps, batch_size, numbers {dataset: {metric: percent}}, answers."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; `python benchmarks/demo_seeds.py` writes it")
    for run in read_json_lines(path, ("objective", "seed", "numbers")):
        if (run["objective"], run["seed"]) == (objective, seed):
            return run
    raise UserError(f"{path} has no run of {objective} with seed {seed}: run `python benchmarks/demo_seeds.py`")
