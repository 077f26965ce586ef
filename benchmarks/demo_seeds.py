"""The quickstart's recipe with several seeds, ALIP and CLIP on the raw texts: means with their spread.

    python benchmarks/demo_seeds.py [--data data/demo] [--seeds 3] [--jobs 2] [--only REGEX]
    python benchmarks/demo_seeds.py --table                              # the table alone

Trains what is missing by scripts/demo/train.sh, as the quickstart does, on the shards and benchmarks that the
quickstart has built, and measures it. A finished run is one line of benchmarks/notes/demo_seeds.jsonl, an interrupted
one resumes from its last checkpoint. The quickstart takes the row and the answers of CLIP, seed 0, from there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts/demo")]

from answers import find_answers  # noqa: E402
from baseline import measure_pixels  # noqa: E402
from recorded import CLIP as RESULTS  # noqa: E402
from unpack import SPLITS  # noqa: E402

from alip import distributed  # noqa: E402
from alip.checkpoint.load import load_model  # noqa: E402
from alip.command import CommandParser, count, file_path, pattern  # noqa: E402
from alip.errors import UserError, run_command  # noqa: E402
from alip.eval.datasets import open_classification, open_retrieval  # noqa: E402
from alip.eval.features import Encoding  # noqa: E402
from alip.eval.retrieval import measure_retrieval  # noqa: E402
from alip.eval.zeroshot import measure_zeroshot  # noqa: E402
from alip.files import atomic_write, read_json, read_json_lines, real_path  # noqa: E402

OBJECTIVES = {"clip-text": "CLIP on the raw texts", "alip": "ALIP"}
COLUMNS = {f"{way}_R@{k}": f"{arrow} R@{k}" for way, arrow in
           (("text_to_image", "text → image"), ("image_to_text", "image → text")) for k in (1, 5)}  # fmt: skip
COLUMNS["top1"] = "49 classes"
Key = tuple[str, int]  # objective, seed
KEEP_EPOCHS = 6  # checkpoints of every sixth epoch stay, 1.3 GB a run, for benchmarks/gate_checkpoints.py


def train(key: Key, folder: Path, data: Path, threads: int) -> None:
    """Trains one run by the quickstart's own script; its output goes to a file beside the run."""
    objective, seed = key
    command = ["bash", str(ROOT / "scripts/demo/train.sh"), "--output", str(folder), "--objective", objective]
    command += ["--seed", str(seed), "--cpu-threads", str(threads), "--keep-epochs", str(KEEP_EPOCHS)]
    own = {"DATA": str(data), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment = {key: value for key, value in os.environ.items() if key not in ("EPOCHS", "BATCH_SIZE", "PROCESSES")}
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(folder.name + ".log")
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env={**environment, **own})
    if done.returncode:
        last = (log.read_text().strip().splitlines() or ["no output"])[-1]
        raise UserError(f"training {folder} failed: {last} (all of it: {log})")


def measure(key: Key, folder: Path, data: Path) -> dict:
    """The line of a trained run: size of its recipe, numbers, answers to the queries of the quickstart's plot."""
    encoding = Encoding(distributed.start("auto"), batch_size=256, workers=0, precision="auto")
    model = load_model(folder, device=encoding.world.device)
    arguments = read_json(folder / "run.json")["arguments"]
    numbers, answers = {}, []
    for name in SPLITS.values():
        retrieved = measure_retrieval(model, open_retrieval(name, data.parent), encoding)
        classified = measure_zeroshot(model, open_classification(name, data.parent), encoding)
        found = {**retrieved.numbers, **classified.numbers}
        numbers[name] = {column: round(found[column], 3) for column in COLUMNS}
        answers = answers or [asdict(answer) for answer in find_answers(retrieved)]
    row = {"objective": key[0], "seed": key[1], "epochs": arguments["epochs"], "batch_size": arguments["batch_size"]}
    return {**row, "numbers": numbers, "answers": answers}


def read_rows(path: Path) -> dict[Key, dict]:
    """The finished runs."""
    rows = read_json_lines(path, ("objective", "seed", "numbers")) if path.exists() else []
    return {(row["objective"], row["seed"]): row for row in rows}


def table(rows: dict[Key, dict], pixels: dict[str, dict]) -> str:
    """Markdown: for each benchmark a line per objective, mean ± standard deviation over the seeds, and each seed."""
    parts = [
        "# The quickstart's recipe over seeds\n",
        "Written by `python benchmarks/demo_seeds.py`: in %, mean ± standard deviation over seeds; then each.\n",
    ]
    for split, name in SPLITS.items():
        lines = [["", *COLUMNS.values()], ["---"] * (len(COLUMNS) + 1)]
        for objective, title in OBJECTIVES.items():
            own = [row["numbers"][name] for (which, _), row in sorted(rows.items()) if which == objective]
            if own:
                cells = [_mean([one[column] for one in own]) for column in COLUMNS]
                lines.append([f"**{title}**, {len(own)} seed{'s' * (len(own) > 1)}", *cells])
        lines.append(["nearest pixels, true names", *(f"{pixels[name][column]:.1f}" for column in COLUMNS)])
        for (objective, seed), row in sorted(rows.items()):
            cells = [f"{row['numbers'][name][column]:.1f}" for column in COLUMNS]
            lines.append([f"{OBJECTIVES[objective]}, seed {seed}", *cells])
        parts += [f"## {split}\n", "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"]
    return "\n".join(parts)


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def main() -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data/demo", help="the quickstart's data folder")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/demo_seeds", help="folder for the runs")
    parser.add_argument("--results", type=file_path, default=RESULTS, help="JSON lines, one a finished run")
    parser.add_argument("--seeds", type=count, default=3, help="seeds 0, 1, … of both (default 3)")
    parser.add_argument("--jobs", type=count, default=1, help="trainings at a time, which share the cores (default 1)")
    parser.add_argument("--only", type=pattern, default="", help="runs whose name matches, e.g. 'alip-0'")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    data, rows = real_path(arguments.data), read_rows(arguments.results)
    if not (data / "eval").is_dir():
        raise UserError(f"{data} has no shards and benchmarks of the demo: run `bash scripts/quickstart.sh` once")
    keys = [(objective, seed) for seed in range(arguments.seeds) for objective in OBJECTIVES]
    missing = [key for key in keys if key not in rows and re.search(arguments.only, f"{key[0]}-{key[1]}")]
    one_at_a_time = Lock()

    def run(key: Key) -> None:
        folder = real_path(arguments.runs) / f"{key[0]}-{key[1]}"
        train(key, folder, data, max(1, (os.cpu_count() or 1) // arguments.jobs))
        with one_at_a_time:
            rows[key] = row = measure(key, folder, data)
            arguments.results.parent.mkdir(parents=True, exist_ok=True)
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{key[0]}-{key[1]}: {row['numbers']['demo-style']}", flush=True)

    if not arguments.table:
        print(f"{len(missing)} of {len(keys)} runs to train", flush=True)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(run, missing))
    if rows:
        page = arguments.results.with_suffix(".md")
        with atomic_write(page, text=True) as file:
            file.write(table(rows, measure_pixels(data.parent)))
        print(page)
    return 0


if __name__ == "__main__":
    run_command(main)
