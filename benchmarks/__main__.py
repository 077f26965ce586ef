"""Every side-by-side measurement that this machine allows, one after the other: `python -m benchmarks`.

    python -m benchmarks                          # about an hour on two cores → build/benchmarks/report.md
    python -m benchmarks --only step loss
    python -m benchmarks --quick                  # seconds each: shows that they run; the figures mean nothing

Each benchmark lets its variants take turns and runs each in a process of its own. The report has a table (what, ours,
each peer, ratio, spread), a plot of it, machine and versions, how cost grows, where a step's time goes; logs/ has what
each benchmark printed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from comparisons import ROWS, Row, advantage, cores, read_rows  # noqa: E402

from alip.command import CommandParser, positive_number  # noqa: E402
from alip.errors import run_command  # noqa: E402
from alip.files import atomic_write, real_path  # noqa: E402
from alip.text_table import markdown_table  # noqa: E402

PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda130", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True)
class Benchmark:
    """script: its file here; quick: arguments of a tiny run; arguments: of a run that means something, where its own
    defaults take longer than needed beside all others; needs: what it cannot do without."""

    script: str
    quick: str
    arguments: str = ""
    needs: str | None = None

    def command_line(self, quick: bool) -> str:
        """What follows `python`."""
        return f"benchmarks/{self.script} {self.quick if quick else self.arguments}".strip()


TINY = f"--model {ROOT / 'benchmarks' / 'tiny.json'}"
BENCHMARKS = {
    "step": Benchmark(
        "step.py",
        f"{TINY} --batch-size 2 --turns 1 --rounds 1 --warmup 0 --precisions fp32",
        "--turns 1",
    ),
    "loss": Benchmark("loss.py", "--sizes 32 --dim 8 --rounds 1 --repeats 1", "--sizes 2048 8192 --repeats 2"),
    "loss-busy": Benchmark(
        "loss.py",
        "--sizes 32 --dim 8 --rounds 1 --repeats 1 --busy 1",
        "--sizes 8192 --rounds 2 --repeats 1 --busy 1",
    ),
    "loader": Benchmark("loader.py", "--samples 64 --batch-size 8 --threads 1 --rounds 1", "--rounds 2", "network"),
    "data2rec": Benchmark("data2rec.py", "--samples 80 --rounds 1 --inputs ready", "--samples 1000", "mxnet"),
    "engine": Benchmark("engine.py", "--width 8 --batch-size 8 --steps 2 --rounds 1 --micro 2"),
    "eval": Benchmark("eval.py", "--images 50 --captions 250 --width 16"),
    "reading": Benchmark("reading.py", "--records 200 --lines 1000"),
    "breakdown": Benchmark("breakdown.py", f"{TINY} --batch-size 2 --steps 1"),
    "trainer": Benchmark("trainer.py", f"{TINY} --samples 16 --batch-size 4 --rounds 1", needs="network"),
    "growth": Benchmark(
        "growth.py",
        f"{TINY} --batch-sizes 1 2 --lengths 4 8 --ranks 1 2 --rank-batch 2 --shards 1 2 --dataset-sizes 1000 2000"
        " --rounds 1",
        "--rounds 1",
    ),
    "evaluation": Benchmark(
        "eval_peer.py",
        "--model tiny --images 10 --rounds 1 --precision fp32 --cases zeroshot",
        "--images 100 --rounds 1 --cases zeroshot all",
    ),
}

PLOTS = {"growth": "growth", "breakdown": "step_time"}  # of the benchmarks that make one of their own


def missing(needs: str | None) -> str | None:
    """Why a benchmark cannot run here; None if it can."""
    if needs == "mxnet":
        python = os.environ.get("ALIP_MXNET_PYTHON") or ROOT / ".venv-mxnet" / "bin" / "python"
        return None if Path(python).exists() else "no .venv-mxnet (see requirements-mxnet.txt)"
    if needs == "network" and os.environ.get("PIP_NO_INDEX"):
        return "needs the package registry"
    return None


def run(name: str, output: Path, quick: bool, minutes: float) -> str:
    """Runs one benchmark; its state, in words. What it recorded is in rows/NAME.jsonl, what it printed in logs/."""
    one = BENCHMARKS[name]
    reason = missing(one.needs)
    if reason:
        return f"left out: {reason}"
    rows, log = output / "rows" / f"{name}.jsonl", output / "logs" / f"{name}.txt"
    for path in (rows, log):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    script, *arguments = one.command_line(quick).split()
    words = [sys.executable, "-W", "ignore", str(ROOT / script), *arguments]
    if name in PLOTS:
        words += ["--output", str(output / PLOTS[name])]
    if name in ("reading", "loader", "data2rec", "trainer"):
        words += ["--work", str(output / "work" / f"{name}{'-quick' if quick else ''}")]
    start = time.monotonic()
    environment = {**os.environ, ROWS: str(real_path(rows))}
    with log.open("w") as file:
        status = run_group(words, 60 * minutes, cwd=output, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if status is None:
        return f"ended after {minutes:g} minutes"
    if status:
        last = log.read_text().strip().splitlines()[-1:] or ["no output"]
        return f"failed with status {status}: {last[0][:200]}"
    return f"{time.monotonic() - start:.0f} s"


def run_group(words: list[str], seconds: float, **options) -> int | None:
    """The exit status of a command; None if it had to be ended. Nothing that it started is left to disturb the next."""
    process = subprocess.Popen(words, start_new_session=True, **options)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 30
        while runs(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)


def runs(group: int) -> bool:
    """Whether a process of this group still runs. The signal has been sent when `killpg` returns; what it ends takes a
    while to give back gigabytes and its core. One that only waits to be reaped does not count."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended between the listing and this
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def machine() -> list[str]:
    """Lines about where this runs."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return [f"{model}, {cores()} cores{load}; {gpu()}; Python {platform.python_version()}", ", ".join(versions)]


def gpu() -> str:
    """The GPU's name."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def with_ours(rows: list[Row]) -> dict[str, list[Row]]:
    """The variants of each comparison in which one is ours."""
    whats = dict.fromkeys(row.what for row in rows if row.variant == "ours")
    return {what: [row for row in rows if row.what == what] for what in whats}


def comparisons(rows: list[Row]) -> list[list[str]]:
    """Table rows: each variant of each comparison, and how many times better ours is."""
    table = []
    for variants in with_ours(rows).values():
        (ours, *_) = (row for row in variants if row.variant == "ours")
        for row in variants:
            table.append([*cells(row)[:3], "" if row is ours else times_better(ours, row), *cells(row)[3:]])
    return table


def by_themselves(rows: list[Row]) -> list[list[str]]:
    """Table rows of what is compared with nothing."""
    compared = with_ours(rows)
    return [cells(row) for row in rows if row.what not in compared]


def cells(row: Row) -> list[str]:
    """What, variant, median, spread, runs."""
    return [row.what, row.variant, f"{row.typical:.4g} {row.unit}", f"{row.spread:.0%}", str(len(row.values))]


def times_better(ours: Row, peer: Row) -> str:
    """The ratio in words; nothing where one of the two is too small to be measured."""
    ratio = advantage(ours, peer)
    return f"{ratio:.2f} ×" if math.isfinite(ratio) else ""


def draw(rows: list[Row], path: Path) -> None:
    """A bar for each peer of each comparison: how many times better ours is."""
    from alip import plot_style

    bars = []
    for what, variants in with_ours(rows).items():
        (ours, *_) = (row for row in variants if row.variant == "ours")
        ratios = [(f"{what}: {row.variant}", advantage(ours, row)) for row in variants if row is not ours]
        bars += [(name, ratio) for name, ratio in ratios if math.isfinite(ratio) and ratio > 0]
    if not bars:
        return
    with plot_style.figure(path, plot_style.PAGE, 0.6 + 0.22 * len(bars)) as figure:
        axes = figure.add_subplot()
        positions = range(len(bars), 0, -1)
        axes.barh(positions, [ratio - 1 for _, ratio in bars], left=1, color=plot_style.BLUE)
        axes.set_xscale("log")  # half as good is as long a bar as twice as good
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.margins(x=0.12)
        axes.axvline(1, color=plot_style.GREY, linewidth=0.8)
        axes.set_yticks(positions, [plot_style.shorten(name, 60) for name, _ in bars])
        axes.set_xlabel("how many times better ours is (median of runs)")
        for at, (_, ratio) in zip(positions, bars):
            side = "left" if ratio >= 1 else "right"
            axes.text(ratio, at, f" {ratio:.2f} ", va="center", ha=side, fontsize=7)


def main() -> int:
    """Runs, writes the report, and gives the exit status: 1 if a benchmark failed."""
    parser = CommandParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "benchmarks", help="folder of the report")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), help="some of them")
    parser.add_argument("--quick", action="store_true", help="tiny runs: shows that they work")
    parser.add_argument("--minutes", type=positive_number, default=40, help="of one benchmark at most")
    args = parser.parse_args()
    output = real_path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the benchmark at work is ended too
    head, states = machine(), {}
    for name in args.only:
        print(f"{name} …", end=" ", flush=True)
        states[name] = run(name, output, args.quick, args.minutes)
        print(states[name], flush=True)
        report(output, head, states, args.quick)  # each time: a run that is ended keeps what it found
    print(output / "report.md")
    return int(any(state.startswith(("failed", "ended")) for state in states.values()))


def report(output: Path, head: list[str], states: dict[str, str], quick: bool) -> None:
    """Writes report.md and its plot from what the benchmarks in `states` recorded; head: lines about the machine."""
    rows = [row for name in states for row in read_rows(output / "rows" / f"{name}.jsonl")]
    draw(rows, output / "comparisons")
    lines = ["# Benchmarks", "", *head, "", *(["A quick run: the figures mean nothing.", ""] if quick else [])]
    headings = ["what", "variant", "median", "ours is better by", "spread", "runs"]
    lines += [markdown_table(headings, comparisons(rows)), ""]
    if by_themselves(rows):
        headings.remove("ours is better by")
        lines += ["## Compared with nothing", "", markdown_table(headings, by_themselves(rows)), ""]
    commands = {name: f"python {BENCHMARKS[name].command_line(quick)}" for name in states}
    lines += [f"- {name}: {state}, `{commands[name]}`" for name, state in states.items()]
    plots = ["comparisons", *(PLOTS[name] for name in states if name in PLOTS)]
    lines += [f"\n![{name}]({name}.png)" for name in plots if (output / f"{name}.png").exists()]
    with atomic_write(output / "report.md", text=True) as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    run_command(main)
