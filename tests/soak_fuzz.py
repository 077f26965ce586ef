"""Mutates inputs of every type and runs what reads them; reports tracebacks, hangs, memory and silent differences.

    python tests/soak_fuzz.py --cases 10000 --seed 1 [--jobs 2] [--only images,tars] [--keep DIR] [--seconds 20]

A case is a target of tests/fuzz and a seed, so any of them can be run again: --only TARGET --first SEED --cases 1.
Cases run in worker processes (--jobs), which are killed when one takes too long or too much memory. The input of each
fault is shrunk as far as the fault stays the same and kept in --keep. Exit status 0 if there was no fault.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import multiprocessing
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alip import command  # noqa: E402
from alip.errors import UserError, run_command  # noqa: E402
from tests import fuzz  # noqa: E402

WAIT = 6  # times as long as its limit a case may take by the clock: a machine may be busy with other things
SHRINK_TRIES = 400  # runs of a case while its input is shrunk
# What commands import when they first need it: loaded before the clock of the first case that does.
LIBRARIES = (
    *("matplotlib.pyplot", "nvidia.dali", "open_clip", "pyarrow.parquet", "scipy.io", "sklearn.linear_model"),
    *("sklearn.metrics", "timm", "torch.utils.tensorboard", "torchvision.datasets", "transformers.models.blip"),
    "transformers.models.clip",
)


def targets(only: str | None = None) -> list[fuzz.Target]:
    """All targets, or those whose names contain one of the comma-separated words."""
    found = []
    for module in sorted(pkgutil.iter_modules(fuzz.__path__), key=lambda module: module.name):
        found += getattr(importlib.import_module(f"tests.fuzz.{module.name}"), "TARGETS", [])
    words = only.split(",") if only else [""]
    chosen = [target for target in found if any(word in target.name for word in words)]
    if not chosen:
        raise UserError(f"no target named {only}; there are {', '.join(target.name for target in found)}")
    return chosen


def seeded(target: fuzz.Target, seed: int) -> random.Random:
    """The generator of a case: independent of all other cases."""
    return random.Random(f"{target.name}/{seed}")


def attempt(target: fuzz.Target, seed: int, folder: Path) -> tuple[str, str]:
    """Runs one case in this process: (outcome, detail), outcome "fault" with what happened."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return fuzz.run_case(target.make(seeded(target, seed), folder), target.allowed), ""
    except fuzz.Escaped as error:
        return "fault", str(error)
    except Exception:
        return "fault", "the target itself failed:\n" + traceback.format_exc(limit=-6)


def signature(detail: str) -> str:
    """What makes two faults the same: the last line that names one of our files, and the type of the error."""
    lines = [line.strip() for line in detail.strip().splitlines()]
    ours = [line.split(", in ")[0] for line in lines if line.startswith("File ") and "/alip/" in line]
    return f"{ours[-1] if ours else ''} {lines[-1].split(':')[0] if lines else ''}"


def shrink(target: fuzz.Target, seed: int, folder: Path, detail: str) -> int:
    """Cuts blocks out of the case's files while the same fault stays; returns the bytes that are left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = target.make(seeded(target, seed), folder)
    tries = 0

    def still_fails() -> bool:
        nonlocal tries
        tries += 1
        try:
            fuzz.run_case(case, target.allowed)
        except fuzz.Escaped as error:
            return signature(str(error)) == signature(detail)
        except Exception:
            return False
        return False

    for path in sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size):
        block = max(1, path.stat().st_size // 2)
        while block and tries < SHRINK_TRIES:
            at = 0
            while at < path.stat().st_size and tries < SHRINK_TRIES:
                whole = path.read_bytes()
                path.write_bytes(whole[:at] + whole[at + block :])
                if not still_fails():
                    path.write_bytes(whole)
                    at += block
            block //= 2
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def work(pipe: Connection, only: str | None) -> None:
    """The worker process: runs the cases that arrive, one at a time. Its own group, with what the commands start."""
    os.setpgid(0, 0)
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # a first compilation takes more than the limit of a case, by itself
    chosen = {target.name: target for target in targets(only)}
    for library in LIBRARIES:
        importlib.import_module(library)
    # What the commands print is of no interest here.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        while True:
            try:
                action, name, seed, folder, detail = pipe.recv()
            except EOFError:  # the run is over
                return
            if action == "run":
                pipe.send(attempt(chosen[name], seed, Path(folder)))
            else:
                pipe.send(("shrunk", str(shrink(chosen[name], seed, Path(folder), detail))))


class Worker:
    """A worker process with limits on time and resident memory; started again after it had to be killed."""

    def __init__(self, only: str | None, seconds: float, gigabytes: float):
        self.only, self.seconds, self.bytes = only, seconds, gigabytes * 2**30
        self.process = None

    def start(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=work, args=(theirs, self.only))
        self.process.start()
        theirs.close()

    def run(self, *job) -> tuple[str, str]:
        """The outcome of a job; "hang" or "memory" when it went over a limit, "died" when the process did."""
        if self.process is None:
            self.start()
            seconds = self.seconds + 120  # imports
        else:
            seconds = self.seconds
        self.pipe.send(job)
        until, spent = time.monotonic() + WAIT * seconds, self._processor_time() + seconds
        while time.monotonic() < until and self._processor_time() < spent:
            if self.pipe.poll(0.05):
                try:
                    return self.pipe.recv()
                except EOFError:
                    return self._end("died", f"status {self.process.exitcode}")
            if not self.process.is_alive():
                return self._end("died", f"status {self.process.exitcode}")
            if self._resident() > self.bytes:
                return self._end("memory", f"more than {self.bytes / 2**30:g} GiB")
        return self._end("hang", f"more than {seconds:g} s")

    def _processor_time(self) -> float:
        """Seconds of the process and of those of its children that have ended."""
        try:
            numbers = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        except OSError:
            return 0.0
        return sum(map(int, numbers)) / os.sysconf("SC_CLK_TCK")

    def _resident(self) -> int:
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _end(self, outcome: str, detail: str) -> tuple[str, str]:
        self.close()
        return outcome, detail

    def close(self, patience: float = 0) -> None:
        """Ends the process, and what its commands have started. patience: seconds that it may take to clear up."""
        if self.process is not None:
            self.pipe.close()
            self.process.join(patience)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()
            self.process = None


def main() -> int:
    """Runs the cases and prints the table; 1 if any of them was a fault."""
    parser = command.CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", type=command.count, default=1000, help="in all, spread over the targets (default 1000)"
    )
    parser.add_argument(
        "--minutes", type=command.positive_number, default=math.inf, help="start no case after this time"
    )
    parser.add_argument("--seed", type=command.natural, default=0, help="of the whole run")
    parser.add_argument("--jobs", type=command.count, default=1, help="worker processes (default 1)")
    parser.add_argument("--first", type=command.seed, help="the first case's own number, to run a reported case again")
    parser.add_argument("--only", help="targets whose names contain one of these words")
    parser.add_argument("--keep", type=Path, help="folder for the shrunk inputs of faults (default: a temporary one)")
    parser.add_argument(
        "--seconds", type=command.positive_number, default=20.0, help="of processor time, limit of one case"
    )
    parser.add_argument(
        "--memory", type=command.positive_number, default=4.0, metavar="GiB", help="limit of the worker process"
    )
    args = parser.parse_args()

    sys.stdout.reconfigure(errors="backslashreplace")  # messages quote inputs, lone surrogates included
    chosen = targets(args.only)
    keep = args.keep or Path(tempfile.mkdtemp(prefix="alip-fuzz-"))
    run = Run(keep, outcomes={target.name: Counter() for target in chosen})
    first = args.seed * 10_000_000 if args.first is None else args.first
    started = time.monotonic()
    cases = ((chosen[number % len(chosen)], first + number // len(chosen)) for number in range(args.cases))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    workers = [Worker(args.only, args.seconds, args.memory) for _ in range(args.jobs)]
    until = started + 60 * args.minutes
    with ThreadPoolExecutor(args.jobs) as pool:
        ends = [pool.submit(run.work, worker, cases, until) for worker in workers]
        try:
            for end in ends:
                end.result()
        except KeyboardInterrupt:
            print("interrupted: what follows is of the cases that ran")
        finally:
            run.over = True
            for worker in workers:
                worker.close(patience=30)
    table(run, time.monotonic() - started)
    return 1 if run.faults else 0


@dataclass
class Run:
    """What became of the cases; several threads, each with a worker of its own, share it."""

    keep: Path
    outcomes: dict[str, Counter]
    faults: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, worker: Worker, cases: Iterator[tuple[fuzz.Target, int]], until: float) -> None:
        """Runs cases, one after the other, until there are no more or the time is up."""
        while not self.over and time.monotonic() < until:
            with self.lock:
                target, seed = next(cases, (None, 0))
            if target is None:
                return
            with tempfile.TemporaryDirectory() as scratch:
                outcome, detail = worker.run("run", target.name, seed, f"{scratch}/case", "")
            if not self.over:
                self._count(worker, target, seed, outcome, detail)

    def _count(self, worker: Worker, target: fuzz.Target, seed: int, outcome: str, detail: str) -> None:
        """Counts a case, and reports it if it is the first with its fault."""
        with self.lock:
            self.outcomes[target.name][outcome] += 1
            if outcome in (fuzz.OK, fuzz.REFUSED):
                return
            seeds = self.faults.setdefault((target.name, f"{outcome} {signature(detail)}"), [])
            seeds.append(seed)
            if len(seeds) > 1:
                return
            print(f"\n{target.name}, case {seed}: {outcome}\n{detail}", flush=True)
        report(worker, target, seed, outcome, detail, self.keep)


def report(worker: Worker, target: fuzz.Target, seed: int, outcome: str, detail: str, keep: Path) -> None:
    """Keeps the input of a new fault, shrunk where the fault can be repeated."""
    folder = keep / f"{target.name.replace('/', '-').replace(' ', '-')}-{seed}"
    if outcome == "fault":
        limit, worker.seconds = worker.seconds, 120.0
        worker.run("shrink", target.name, seed, str(folder), detail)
        worker.seconds = limit
    folder.mkdir(parents=True, exist_ok=True)
    about = {"target": target.name, "seed": seed, "outcome": outcome, "detail": detail}
    (folder / "fault.json").write_text(json.dumps(about, indent=1) + "\n")


def table(run: Run, seconds: float) -> None:
    """Prints the outcomes by target, and each fault with the cases that had it."""
    total = sum(sum(counter.values()) for counter in run.outcomes.values())
    width = max(len(name) for name in run.outcomes)
    print(f"\n{'target':<{width}}  {'read':>7}  {'refused':>7}  {'faults':>7}")
    for name, counter in run.outcomes.items():
        bad = sum(count for outcome, count in counter.items() if outcome not in (fuzz.OK, fuzz.REFUSED))
        print(f"{name:<{width}}  {counter[fuzz.OK]:>7,}  {counter[fuzz.REFUSED]:>7,}  {bad:>7,}")
    for (name, what), seeds in run.faults.items():
        print(f"{name}: {what}: {len(seeds)} cases, the first {seeds[0]}")
    where = f"; inputs in {run.keep}" if run.faults else ""
    found = sum(map(len, run.faults.values()))
    print(f"{total:,} cases in {seconds:.0f} s: {found} faults, {len(run.faults)} different{where}")


if __name__ == "__main__":
    run_command(main)
