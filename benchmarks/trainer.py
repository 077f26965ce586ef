"""Training end to end, from files to weights: train.py beside open_clip's own trainer, on the same images.

    python benchmarks/trainer.py [--model ViT-B-32] [--samples 320] [--batch-size 32] [--rounds 2] [--workers 2]

Ours reads rec shards, and every sample has two texts; `open_clip_train.main` (webdataset 0.2.86, in an environment of
its own that uses this one's torch) reads WebDataset tars with one text each. Same photographs, crop, model, batch and
precision. Both take turns, each in processes of its own; the first steps do not count. Also as texts/s: ours trains
twice as many.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from comparisons import cores, record
from loader import prepare

from alip.command import CommandParser, count
from alip.errors import run_command
from alip.files import real_path
from alip.model.precision import canonical, resolve
from alip.text_table import markdown_table

ROOT = Path(__file__).resolve().parents[1]
_BATCH_TIME = re.compile(r"Batch \(t\): ([0-9.]+)")
_WARM = 3  # first steps that do not count
# Its command line, after it has learned of the model in a JSON file, if that is given: it takes names only.
_OPEN_CLIP = """
import sys
from pathlib import Path
import open_clip
from open_clip_train.main import main
if sys.argv[1].endswith(".json"):
    open_clip.add_model_config(sys.argv[1])
main(["--model", Path(sys.argv[1]).stem if sys.argv[1].endswith(".json") else sys.argv[1], *sys.argv[2:]])
"""


def run(command: list[str], folder: Path) -> str:
    """What a command printed; ends with its last lines if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{(done.stdout + done.stderr)[-1500:]}")
    return done.stdout + done.stderr


def ours(args: argparse.Namespace) -> float:
    """Samples/s of train.py, the median over its steps."""
    output = args.work / "run-ours"
    shutil.rmtree(output, ignore_errors=True)
    words = ["--train-data", args.work / "set", "--model", args.model, "--batch-size", args.batch_size, "--epochs", 1]
    words += ["--workers", args.workers, "--precision", args.precision, "--output", output, "--save-every", 0]
    run([sys.executable, ROOT / "train.py", *map(str, [*words, "--log-every", 1, "--report-to", "none"])], args.work)
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    rates = [line["samples_per_s"] for line in lines if line["kind"] == "train"]
    return statistics.median(rates[_WARM:] or rates)


def theirs(args: argparse.Namespace, python: str) -> float:
    """Samples/s of open_clip's trainer, the median over its steps."""
    logs = args.work / "run-open-clip"
    shutil.rmtree(logs, ignore_errors=True)
    tars = sorted((args.work / "tars").glob("*.tar"))
    pattern = f"{str(tars[0])[:-9]}{{00000..{len(tars) - 1:05d}}}.tar"
    words = ["--train-data", pattern, "--train-num-samples", args.samples, "--dataset-type", "webdataset"]
    words += ["--batch-size", args.batch_size, "--epochs", 1, "--workers", args.workers]
    words += ["--precision", args.precision, "--log-every-n-steps", 1, "--logs", logs, "--name", "run"]
    words += ["--aug-cfg", "scale=(0.7, 1.0)", "ratio=(0.8, 1.25)", "--save-frequency", 0]
    printed = run([python, "-W", "ignore", "-c", _OPEN_CLIP, args.model, *map(str, words)], args.work)
    times = [float(found) for found in _BATCH_TIME.findall(printed)]
    if not times:
        sys.exit(f"open_clip's trainer printed no step: {printed[-1500:]}")
    return args.batch_size / statistics.median(times[_WARM:] or times)


def main() -> None:
    """Prints the table."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmark-trainer", help="work folder")
    parser.add_argument("--model", default="ViT-B-32", help="open_clip name or JSON file")
    parser.add_argument("--samples", type=count, default=16384 if on_gpu else 320)
    parser.add_argument("--batch-size", type=count, default=512 if on_gpu else 32)
    parser.add_argument("--rounds", type=count, default=2)
    parser.add_argument("--workers", type=count, default=cores())
    parser.add_argument("--precision", type=canonical, default="auto", help="auto, amp_bf16, amp or fp32")
    args = parser.parse_args()
    args.work = real_path(args.work)
    args.precision = resolve(args.precision, torch.device("cuda" if on_gpu else "cpu"))
    if args.model.endswith(".json"):
        args.model = str(real_path(args.model))
    python = prepare(args.work, args.samples)
    rates: dict[str, list[float]] = {"ours": [], "open_clip": []}
    for _ in range(args.rounds):
        rates["ours"].append(ours(args))
        rates["open_clip"].append(theirs(args, python))
    base = statistics.median(rates["open_clip"])
    rows = []
    for name, texts in (("ours", 2), ("open_clip", 1)):
        typical = statistics.median(rates[name])
        record("training end to end", name, "samples/s", rates[name])
        record("training end to end, texts", name, "texts/s", [texts * rate for rate in rates[name]])
        spread = (max(rates[name]) - min(rates[name])) / typical
        rows.append([name, f"{typical:.1f}", f"{texts * typical:.1f}", f"{typical / base:.2f} ×", f"{spread:.0%}"])
    print(f"{args.model}, batch {args.batch_size}, {args.precision}, {args.workers} workers, {args.rounds} rounds\n")
    print(markdown_table(["trainer", "samples/s", "texts/s", "samples/s, × open_clip's", "spread"], rows))


if __name__ == "__main__":
    run_command(main)
