"""Everything that is to be known about a GPU, in one run of at most 8 minutes: correctness first, then speed.

    bash benchmarks/gpu.sh                         # → build/gpu/gpu.md
    python benchmarks/gpu.py --only steps profile  # some parts only
    python benchmarks/gpu.py --dry-run             # every part on the CPU at tiny sizes: shows that they run

Without a GPU it says so and ends with status 2. Packages that are missing (open_clip, DALI, …) are replaced or left
out, and the report names them. Status 1 if a check failed; a part that fails does not stop the others.
"""

from __future__ import annotations

import platform
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import stand_ins  # noqa: E402

from alip import command  # noqa: E402
from alip.errors import UserError, run_command  # noqa: E402

MISSING = stand_ins.install()

import gpu_checks  # noqa: E402
import gpu_rates  # noqa: E402

from alip.model.compilation import missing_compiler  # noqa: E402

# Part: (function, seconds that must be left to start it).
PARTS = {
    "ceiling": (gpu_rates.ceiling, 5),
    "loss": (gpu_checks.loss, 5),
    "attention": (gpu_checks.attention_, 5),
    "gradients": (gpu_checks.gradients, 10),
    "nccl": (gpu_checks.one_rank, 10),
    "waiting": (gpu_checks.waiting, 10),
    "steps": (gpu_rates.steps, 30),
    "profile": (gpu_rates.profile, 15),  # of a size that `steps` has compiled
    "batch-size": (gpu_rates.batch_size, 30),
    "loss-sizes": (gpu_rates.loss_sizes, 15),
    "decoding": (gpu_rates.decoding, 45),
}


@dataclass
class Report:
    """What the parts find, as Markdown; `deadline`: when the last one has to be done, by time.monotonic().

    tiny: CPU sizes. measured: numbers that later parts use (the ceiling).
    """

    device: torch.device
    deadline: float
    tiny: bool
    work: Path
    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def say(self, *lines: str) -> None:
        """Lines of the report, written and printed at once: what was found stays if the run is ended."""
        self.lines += lines
        (self.work / "gpu.md").write_text("\n".join(self.lines) + "\n")
        print(*lines, sep="\n", flush=True)

    def check(self, name: str, good: bool, detail: str) -> None:
        """One check."""
        self.say(f"- {'ok' if good else '**FAILED**'}: {name}: {detail}")
        if not good:
            self.failed.append(name)

    def table(self, head: list[str], rows: Iterable[list[object]]) -> None:
        """A Markdown table, each row said as soon as it is there."""
        self.say("", "| " + " | ".join(head) + " |", "|" + "---|" * len(head))
        for row in rows:
            self.say("| " + " | ".join(str(cell) for cell in row) + " |")
        self.say("")

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


def machine(device: torch.device) -> str:
    """One line about where this ran."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return f"{name}, torch {torch.__version__}{cuda}, Python {platform.python_version()}"


def run(report: Report, parts: list[str]) -> None:
    """The parts one after the other."""
    report.say("# One GPU", "", machine(report.device) + (" (dry run: tiny sizes)" if report.tiny else ""), "")
    if MISSING:
        report.say(f"Not installed here, replaced or left out: {', '.join(MISSING)}.", "")
    lacks = missing_compiler(report.device)
    if lacks:
        report.say(f"Nothing is compiled: {lacks}.", "")
    for name in parts:
        function, needed = PARTS[name]
        report.say(f"## {name}", "", (function.__doc__ or name).splitlines()[0], "")
        if report.left < needed and not report.tiny:
            report.say(f"left out: {report.left:.0f} s left")
            continue
        start = time.monotonic()
        try:
            function(report)
        except Exception as error:
            traceback.print_exc()
            report.check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        finally:
            if report.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
                torch.cuda.empty_cache()
        report.say("", f"({time.monotonic() - start:.0f} s)", "")


def main() -> int:
    """Writes the report; the exit status."""
    parser = command.CommandParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu", help="folder of gpu.md and work files")
    parser.add_argument(
        "--minutes", type=command.positive_number, default=7.5, help="no part starts that would not be done by then"
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="some parts")
    parser.add_argument("--dry-run", action="store_true", help="every part on the CPU, at tiny sizes")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        raise UserError("no GPU can be used here: benchmarks/gpu.py needs one (--dry-run shows that its parts run)")
    device = torch.device("cpu") if args.dry_run else torch.device("cuda", 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)  # for operations as small as these, more only wait for one another
    args.output.mkdir(parents=True, exist_ok=True)
    report = Report(device, time.monotonic() + 60 * args.minutes, args.dry_run, args.output)
    run(report, args.only)
    names = f": {', '.join(report.failed)}" if report.failed else ""
    print(f"{args.output / 'gpu.md'}: {len(report.failed)} checks failed{names}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_command(main)
