"""SIGKILL at random moments: a command that is killed and started again must end as one that was never killed.

    python tests/soak_kill.py --kills 100                          # every target
    python tests/soak_kill.py --targets build caption train --kills 100 --seed 1

A target (tests/helpers/kill_targets.py) is a command that writes into an output folder. It runs once without a kill;
then again and again, killed after a random time (its parent process alone, or its workers too) and started again at
once. When it ends by itself, what it wrote is compared with the first run's, left-over files included, and the samples
counted; then it starts with a new folder, until all kills are spent. Exit status 0 if nothing differed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alip import command  # noqa: E402
from alip.errors import run_command  # noqa: E402
from tests.helpers.kill_jobs import Job  # noqa: E402
from tests.helpers.kill_targets import IMPORTED, TARGETS  # noqa: E402

TIMEOUT = 600  # seconds: a run that takes longer hangs


@dataclass
class Figures:
    """What was found. kills: SIGKILLs that hit a running command; ends: runs that came to their end and were compared;
    faults: what differed, or failed."""

    kills: int = 0
    starts: int = 0
    ends: int = 0
    lost: int = 0
    doubled: int = 0
    faults: list[str] = field(default_factory=list)


def fork(job: Job, folder: Path, log: Path) -> int:
    """Starts the command in a process group of its own; the process id. Forked, so that it starts in milliseconds."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = _run(job, folder)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(job: Job, folder: Path) -> int:
    import traceback

    try:
        run_command(lambda: job.start(folder))
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    return 1


def wait(process: int, seconds: float) -> int | None:
    """The exit status, or None if the process still runs after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.001)


def kill(process: int, group: bool) -> None:
    """SIGKILL to the process, or to it and everything that it has started, at once."""
    for one in [process, *(_descendants(process) if group else ())]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    os.waitpid(process, 0)


def _descendants(process: int) -> list[int]:
    """Those in sessions of their own too, as a launcher's ranks are."""
    path = Path(f"/proc/{process}/task/{process}/children")
    try:
        children = [int(word) for word in path.read_text().split()]
    except OSError:  # it has just ended
        return []
    return children + [one for child in children for one in _descendants(child)]


def soak(name: str, job: Job, work: Path, kills: int, rng: random.Random) -> Figures:
    """Kills one target so many times."""
    figures, log = Figures(), work / "log.txt"
    whole = work / "whole"
    whole.mkdir()
    job.prepare(whole)
    begun = time.monotonic()
    status = wait(fork(job, whole, log), TIMEOUT)
    duration = time.monotonic() - begun
    if status != 0:
        figures.faults.append(f"without a kill: status {status}: {log.read_text()[-2000:]}")
        return figures
    expected, expected_keys = job.content(whole), Counter(job.samples(whole))
    print(f"{name}: {sum(expected_keys.values())} samples in {duration:.1f} s without a kill", flush=True)
    folder = work / "killed"
    while figures.kills < kills:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        job.prepare(folder)
        _one_output(job, folder, log, duration, kills, rng, figures)
        figures.ends += 1
        if figures.faults:
            return figures
        found, found_keys = job.content(folder), Counter(job.samples(folder))
        figures.lost += sum((expected_keys - found_keys).values())
        figures.doubled += sum((found_keys - expected_keys).values())
        names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if names:
            figures.faults.append(f"differ from the run without a kill: {', '.join(names[:10])} ({folder})")
            return figures
    return figures


def _one_output(
    job: Job, folder: Path, log: Path, duration: float, kills: int, rng: random.Random, figures: Figures
) -> None:
    """Starts and kills the command until it ends by itself."""
    for _ in range(1000):
        figures.starts += 1
        process = fork(job, folder, log)
        patience = TIMEOUT if figures.kills >= kills else rng.choice(job.reach) * rng.random() * duration
        status = wait(process, patience)
        if status is None and patience < TIMEOUT:
            kill(process, group=rng.random() < 0.5)
            figures.kills += 1
            continue
        if status is None:
            kill(process, group=True)
        if status != 0:
            figures.faults.append(f"after {figures.kills} kills: status {status}: {log.read_text()[-2000:]}")
        return
    figures.faults.append("a thousand starts without an end")


def main() -> int:
    parser = command.CommandParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--kills", type=command.count, default=100, help="of each target")
    parser.add_argument("--seed", type=command.natural, default=0)
    parser.add_argument("--samples", type=command.count, default=400)
    parser.add_argument("--workers", type=command.workers, default=4)
    parser.add_argument("--folder", type=Path, help="where everything is written (default: a temporary folder)")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from alip.tokens import tokenize

    for module in IMPORTED:
        importlib.import_module(module)

    torch.set_num_threads(1)  # forked processes must not wait for threads that were not forked with them
    tokenize(["loaded before the first fork"])
    folder = args.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    failed = 0
    for name in args.targets:
        work = folder / name
        work.mkdir(parents=True, exist_ok=True)
        job = TARGETS[name](work, args.samples, args.workers)
        figures = soak(name, job, work, args.kills, random.Random(f"{args.seed}/{name}"))
        failed += len(figures.faults)
        print(
            f"{name}: {figures.kills} kills, {figures.ends} outputs ended, {figures.lost} samples lost, "
            f"{figures.doubled} doubled, {len(figures.faults)} faults",
            flush=True,
        )
        print(*figures.faults, sep="\n", end="\n" if figures.faults else "", flush=True)
        if not figures.faults and not args.folder:
            shutil.rmtree(work)
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
