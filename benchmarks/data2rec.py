"""Images a second of building rec shards: data2rec.py against im2rec.py from the mxnet 1.9.1 package.

    python benchmarks/data2rec.py                     # two workers each
    python benchmarks/data2rec.py --workers 8 --samples 20000

Same JPEGs, short side 256, quality 95, the same number of worker processes. im2rec reads a folder through its list
file and stores one number as label; data2rec.py reads tars, and also checks every image, tokenizes two texts, and
writes checksums and the sidecar. Three inputs: `web` (500 × 375, as ImageNet or 500-pixel Flickr images),
`large` (1600 × 1200), and `ready` (short side 256 already: ours go in untouched, im2rec re-encodes). Contestants take
turns; the best of all rounds counts. The time to start (interpreter, imports) is measured with one image and taken off.
Needs the environment of requirements-mxnet.txt (ALIP_MXNET_PYTHON, or .venv-mxnet at the root).
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from alip.command import CommandParser, count  # noqa: E402
from alip.errors import run_command  # noqa: E402

INPUTS = {"web": (500, 375, 95), "large": (1600, 1200, 85), "ready": (341, 256, 90)}
TIMES = {"ready": 5}  # as many samples: so few take ours less time than the start differs from one to the next


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """(seconds, processor seconds of all processes) of a command that must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_ours(source: Path, workers: int) -> tuple[float, float]:
    """data2rec.py from tars."""
    output = source / "ours"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, str(ROOT / "data2rec.py"), "--input", str(source / "tars"), "--output", "ours/set"]
    return timed([*command, "--workers", str(workers), "--short-side", "256", "--quality", "95", "--quiet"], source)


def run_theirs(source: Path, workers: int, python: str) -> tuple[float, float]:
    """im2rec.py from a list file."""
    images = sorted((source / "images").iterdir())
    (source / "theirs.lst").write_text("".join(f"{i}\t0\t{path.name}\n" for i, path in enumerate(images)))
    find = "import mxnet, os; print(os.path.join(os.path.dirname(mxnet.__file__), 'tools', 'im2rec.py'))"
    script = subprocess.check_output([python, "-W", "ignore", "-c", find], text=True).strip()
    command = [python, script, "theirs.lst", "images", "--resize", "256", "--quality", "95"]
    return timed([*command, "--num-thread", str(workers)], source)


def prepare(work: Path, name: str, samples: int) -> Path:
    """The photographs of one input."""
    from photos import make_photos

    folder = work / f"{name}-{samples}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_photos(folder, samples, *INPUTS[name], tars=4 if samples > 1 else 1)
        (folder / "complete").touch()
    return folder


def main() -> None:
    """Prints the table."""
    parser = CommandParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmark-data2rec", help="work folder")
    parser.add_argument(
        "--samples", type=count, default=3000, help="of `web` and `large`; of `ready` five times as many"
    )
    parser.add_argument("--workers", type=count, default=2)
    parser.add_argument("--rounds", type=count, default=2)
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=list(INPUTS))
    args = parser.parse_args()
    python = os.environ.get("ALIP_MXNET_PYTHON") or str(ROOT / ".venv-mxnet" / "bin" / "python")
    if not Path(python).exists():
        sys.exit("make .venv-mxnet from requirements-mxnet.txt (Python 3.11 or older), or set ALIP_MXNET_PYTHON")
    contestants = {
        "data2rec": lambda folder: run_ours(folder, args.workers),
        "im2rec": lambda folder: run_theirs(folder, args.workers, python),
    }
    print(
        f"{'input':<8}  {'tool':<8}  {'images/s':>8}  {'busy cores':>10}  {'images per cpu second':>21}  {'ours is':>8}"
    )
    for inputs in args.inputs:
        samples = args.samples * TIMES.get(inputs, 1)
        one, many = prepare(args.work, inputs, 1), prepare(args.work, inputs, samples)
        start = dict.fromkeys(contestants, (9000000000.0, 9000000000.0))
        whole = dict(start)
        for _ in range(args.rounds):
            for name, run in contestants.items():
                start[name] = min(start[name], run(one))
                whole[name] = min(whole[name], run(many))
        from comparisons import record

        if any(whole[name][way] <= start[name][way] for name in contestants for way in (0, 1)):
            print(f"{inputs:<8}  {samples} samples take no longer than the start: --samples must be larger")
            continue
        rates = {name: samples / (whole[name][0] - start[name][0]) for name in contestants}
        for name in contestants:
            record(f"building shards, {inputs}", {"data2rec": "ours"}.get(name, name), "images/s", [rates[name]])
            seconds, busy = (all_of - of_one for all_of, of_one in zip(whole[name], start[name]))
            print(
                f"{inputs:<8}  {name:<8}  {rates[name]:>8.0f}  {busy / seconds:>10.2f}  {samples / busy:>14.0f}  "
                f"{rates['data2rec'] / rates[name]:>7.2f}×"
            )


if __name__ == "__main__":
    run_command(main)
