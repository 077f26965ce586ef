"""What the gates are worth on noisy texts: CLIP, bi-path without gates and ALIP over mismatch and caption-error rates.

    python benchmarks/noise_study.py [--jobs 2] [--only REGEX] [--seeds 3]      # train what is missing, then the table
    python benchmarks/noise_study.py --table                                   # the table and the plots alone

Data: the demo's images of a third of its concepts, with raw texts and captions corrupted again at the rates of the run.
All runs share model, steps, data order, augmentation and hyper-parameters (noise_study_train.py); only the loss of the
arm differs. They are measured on held-out styles of the same concepts. A finished run is one JSON line in
benchmarks/notes/noise_study.jsonl, so the study resumes where it stopped; the most telling runs come first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parent)]

import noise_study_report as report  # noqa: E402
import noise_study_train as study  # noqa: E402
from noise_study_train import Run  # noqa: E402

from alip.command import CommandParser, count, file_path, pattern  # noqa: E402
from alip.errors import run_command  # noqa: E402
from alip.files import real_path  # noqa: E402

RESULTS = study.ROOT / "benchmarks/notes/noise_study.jsonl"
RATES = [(40, 10), (0, 10), (60, 10), (20, 10), (40, 0), (40, 30)]  # % of raw texts mismatched, % of captions wrong
S, T, C = "use_sample_weight", "use_text_weight", "use_caption_weight"
MAIN_ARMS = {
    "CLIP, raw texts": {"objective": "clip-text"},
    "CLIP, captions": {"objective": "clip-caption"},
    "no gates": {S: False, T: False, C: False},
    "ALIP": {},
}
# The other arms run at RATES[0] only.
SINGLE_GATES = {"W^s only": {T: False, C: False}, "W^t only": {S: False, C: False}, "W^c only": {S: False, T: False}}
SETTINGS = {
    "gamma 1": {"gamma_sample": 1.0, "gamma_pair": 1.0},
    "gamma 4": {"gamma_sample": 4.0, "gamma_pair": 4.0},
    "momentum 0.5": {"history_momentum": 0.5},
    "momentum 0.99": {"history_momentum": 0.99},
    "start 1": {"history_init": 1.0},
    "start 1, momentum 0.99": {"history_init": 1.0, "history_momentum": 0.99},
}
# Raw texts kept by an expression over the scores of the ALIP run of the same seed; as many each time.
CLEANING = {
    "CLIP, cleaned by S_xt": "rank(image_text_similarity) >= 0.4",
    "CLIP, cleaned by S_tc": "rank(text_caption_similarity) >= 0.4",
    "CLIP, cleaned at random": "random({seed}) >= 0.4",
}
# Why the gates help training or not, also at RATES[0] only: weights that know the labels, gates that do not change
# during training, W^s off the caption path; and three times the images, seen 5 times instead of 14.
WHY = {
    "oracle": {"weights": study.ORACLE},
    "gates of CLIP, captions": {"weights": study.FROZEN},
    "W^s on texts only": {"weights": study.TEXTS_ONLY},
}
ALL_CONCEPTS = {"no gates": {}, "ALIP": {}, "oracle": WHY["oracle"]}


def all_runs(seeds: int) -> list[Run]:
    """The whole study, the most telling runs first."""

    def group(arms: dict[str, dict], rates: Sequence[tuple[int, int]]) -> list[Run]:
        return [
            Run(arm, tuple(loss.items()), *rate, seed)
            for rate in rates
            for seed in range(seeds)
            for arm, loss in arms.items()
        ]

    clip = tuple(MAIN_ARMS["CLIP, raw texts"].items())
    cleaning = [
        Run(arm, clip, *RATES[0], seed, keep.format(seed=seed))
        for seed in range(seeds)
        for arm, keep in CLEANING.items()
    ]
    why = [Run(arm, (), *RATES[0], seed, **more) for seed in range(seeds) for arm, more in WHY.items()]
    why += [
        Run(f"{arm}, all concepts", tuple(MAIN_ARMS.get(arm, {}).items()), *RATES[0], seed, **more, concepts=1.0)
        for seed in range(seeds)
        for arm, more in ALL_CONCEPTS.items()
    ]
    singles, settings = group(SINGLE_GATES, RATES[:1]), group(SETTINGS, RATES[:1])
    main = [group(MAIN_ARMS, [rate]) for rate in RATES]
    return [*main[0], *cleaning, *main[1], *main[2], *singles, *main[4], *main[5], *main[3], *settings, *why]


def _with_scorers(todo: list[Run], folder: Path) -> list[Run]:
    """The runs, and before them those whose scores they need and that are not there."""
    scorers = [run.scorer for run in todo if run.scorer and not study.scores_path(folder, run.scorer).exists()]
    return list(dict.fromkeys([run for run in scorers if run not in todo] + todo))


def train_missing(runs: list[Run], done: set[str], jobs: int, folder: Path, results: Path) -> int:
    """Trains the runs that are not done, `jobs` at a time, and appends a line for each; returns how many failed."""
    failed = 0
    todo = _with_scorers([run for run in runs if run.key not in done], folder)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=study.start_worker) as pool:
        running: dict[Future, Run] = {}
        while todo or running:
            # An arm that needs the scores of another run waits for it.
            ready = [run for run in todo if run.scorer is None or study.scores_path(folder, run.scorer).exists()]
            for run in ready[: jobs - len(running)]:
                todo.remove(run)
                running[pool.submit(study.train_and_measure, run, folder)] = run
            if not running:
                print(f"left out, as the runs that score them failed: {', '.join(run.key for run in todo)}")
                return failed + len(todo)
            for future in wait(running, return_when="FIRST_COMPLETED").done:
                run = running.pop(future)
                if error := future.exception():
                    failed += 1
                    print(f"{run.key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    continue
                row = future.result()
                if run.key in done:  # trained again only for its scores
                    continue
                results.parent.mkdir(parents=True, exist_ok=True)
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                done.add(run.key)
                numbers = " ".join(f"{name} {row[name]:.1f}" for name in report.METRICS)
                print(f"{run.key}: {numbers} ({row['seconds']:.0f} s, {len(done)} runs done)", flush=True)
    return failed


def main() -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=study.ROOT / "runs/noise_study", help="folder for gate scores")
    parser.add_argument("--results", type=file_path, default=RESULTS, help="JSON lines, one a finished run")
    parser.add_argument("--images", type=Path, default=study.ROOT / "docs/images", help="folder for the plots")
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time, one CPU thread each (default 1)")
    parser.add_argument("--seeds", type=count, default=3, help="seeds 0, 1, … of every arm (default 3)")
    parser.add_argument("--only", type=pattern, help="the runs whose key matches, e.g. 'm40.c10' or '^ALIP.*s0'")
    parser.add_argument("--list", action="store_true", help="print the keys of the runs and which are done")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()

    done = {row["key"] for row in report.read_rows(arguments.results)}
    runs = all_runs(arguments.seeds)
    wanted = [run for run in runs if re.search(arguments.only or "", run.key)]
    if arguments.list:
        print("\n".join(f"{'done' if run.key in done else '    '} {run.key}" for run in wanted))
        return 0
    failed = 0
    if not arguments.table:
        missing = sum(run.key not in done for run in wanted)
        print(f"{missing} of {len(runs)} runs to train, {study.STEPS} steps of {study.BATCH} samples each", flush=True)
        failed = train_missing(wanted, done, arguments.jobs, real_path(arguments.output), arguments.results)
    report.write(arguments.results, len(runs), arguments.results.with_suffix(".md"), arguments.images)
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
