"""Kills a training run any number of times and checks that it comes out as one that was never killed.

    python tests/soak_resume.py --kills 50 [--ranks 2] [--seed 1] [-- further flags of train.py]

Every kill is a SIGKILL at a random moment: at the start, in a step, in a save. At the end the train lines of
metrics.jsonl and the last weights of the two runs must be equal, bit for bit. Uses scripts/demo's data and model
by default. Exit status 0 if they are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
CLOCKS = ("time", "samples_per_s", "model_tflops_per_s", "mfu", "data_wait_s", "gpu_memory_gib")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="length of the run (default: 20 for each kill)")
    parser.add_argument("--train-data", default=str(ROOT / "data/demo/train"))
    parser.add_argument("--model", default=str(ROOT / "scripts/demo/model.json"))
    parser.add_argument("--folder", type=Path, help="where the two runs go (default: a temporary folder)")
    parser.add_argument("flags", nargs="*", help="further flags of train.py, after --")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="soak-"))

    options = ["--train-data", args.train_data, "--model", args.model, "--precision", "fp32", "--batch-size", "32"]
    steps = args.steps or 20 * args.kills
    options += ["--steps", str(steps), "--log-every", "1", "--save-every", "7", "--resume", "auto", *args.flags]
    command = launch(args.ranks, options)
    whole, killed = folder / "whole", folder / "killed"
    finish([*command, "--output", str(whole)])

    generator = random.Random(args.seed)
    for k in range(args.kills):
        # On average as far as the run is long, shared out over the kills; what a resume repeats comes on top.
        ahead = generator.randrange(0, max(1, 2 * steps // args.kills))
        step = kill_once([*command, "--output", str(killed)], killed, ahead, generator.uniform(0, 0.1))
        print(f"kill {k + 1}/{args.kills} at step {step} of {steps}", flush=True)
    finish([*command, "--output", str(killed)])

    ours, theirs = train_lines(killed), train_lines(whole)
    weights = [torch.load(newest(run), weights_only=True)["model"] for run in (killed, whole)]
    same = ours == theirs and all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    print(f"{len(theirs)} train lines and {len(weights[0])} tensors: {'all equal' if same else 'NOT EQUAL'} ({folder})")
    return 0 if same else 1


def launch(ranks: int, options: list[str]) -> list[str]:
    """The training command, under torchrun for more than one rank."""
    entry = [str(ROOT / "train.py"), *options]
    if ranks == 1:
        return [sys.executable, *entry]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *entry]


def finish(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"a run failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def kill_once(command: list[str], run: Path, ahead: int, seconds: float) -> int:
    """Starts the run and kills it `seconds` after it has come `ahead` steps on; returns its last step. With 0, as soon
    as it has opened its log; a run that ends before is over."""
    before = size_of(run)
    # A session of its own: the kill takes the launcher and all ranks at once, as a power cut would.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
    )
    while size_of(run) == before and process.poll() is None:
        time.sleep(0.005)
    begun = last_step(run)
    while last_step(run) < begun + ahead and process.poll() is None:
        time.sleep(0.005)
    time.sleep(seconds)
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            print(f"process {pid} had ended by itself")
    process.wait()
    return last_step(run)


def last_step(run: Path) -> int:
    lines = train_lines(run)
    return lines[-1]["step"] if lines else 0


def descendants(pid: int) -> list[int]:
    """The ranks that a launcher started (they are in sessions of their own)."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(word) for word in path.read_text().split()] if path.exists() else []
    return children + [d for child in children for d in descendants(child)]


def size_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.stat().st_size if path.exists() else -1


def train_lines(run: Path) -> list[dict]:
    found = []
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # the kill came in the middle of a line
            continue
        if entry["kind"] == "train":
            found.append({key: value for key, value in entry.items() if key not in CLOCKS})
    return found


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*.pt"))


if __name__ == "__main__":
    sys.exit(main())
