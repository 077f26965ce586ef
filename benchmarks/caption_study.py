"""What several captions of an image, and filtered captions, are worth: ALIP on the demo's images, as in noise_study.py.

    python benchmarks/caption_study.py [--only REGEX] [--seeds 3]      # train what is missing, then the tables
    python benchmarks/caption_study.py --table                        # the tables alone

Data, model and steps are those of the noise study with 40 % of the raw texts mismatched; the arms differ in the
captions. Every image has up to five right wordings, of which training takes one for each epoch, as train.py does.
A finished run is one JSON line in benchmarks/notes/caption_study.jsonl, so the study resumes where it stopped.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parent)]

import noise_study_report as report  # noqa: E402
import noise_study_train as study  # noqa: E402
from texts import corrupt_texts, sample, spoiled_caption, wordings  # noqa: E402

from alip.command import CommandParser, count, file_path, pattern  # noqa: E402
from alip.data.captions import choose_captions  # noqa: E402
from alip.errors import run_command  # noqa: E402
from alip.eval.gates.labels import matched_auc  # noqa: E402
from alip.files import atomic_write  # noqa: E402

RESULTS = study.ROOT / "benchmarks/notes/caption_study.jsonl"
MISMATCHED, SPOILED = 0.4, 0.3  # of the raw texts; of the captions, in the arms in which they are spoiled
CAPTIONS = (1, 3, 5)  # of each image
FILTERS = {"none": "nothing", "random": "30 % at random", "clipscore": "lowest 30 % of S_xc", "truth": "all spoiled"}
METRICS = report.METRICS


@dataclass(frozen=True)
class Run:
    """One run. captions: of each image; spoiled: whether 30 % of them are; filter: of FILTERS, what is removed."""

    captions: int
    spoiled: bool
    filter: str
    seed: int
    loss: tuple = ()

    @property
    def arm(self) -> str:
        return f"k{self.captions}|{'spoiled' if self.spoiled else 'right'}|{self.filter}"

    @property
    def key(self) -> str:
        return f"{self.arm}|s{self.seed}"


def all_runs(seeds: int) -> list[Run]:
    """The study; the run that scores the captions for `clipscore` comes before it."""
    right = [Run(k, False, "none", seed) for seed in range(seeds) for k in CAPTIONS]
    spoiled = [Run(3, True, name, seed) for seed in range(seeds) for name in FILTERS]
    return right + spoiled + [Run(1, True, "none", seed) for seed in range(seeds)]


def make_data(run: Run) -> SimpleNamespace:
    """Images, raw texts (n, 77), captions (n, K, 77), and which of these are spoiled (n, K)."""
    records, images = study.load_images("train")
    records = corrupt_texts(records, MISMATCHED, 0.0)
    by_class: dict[str, list[str]] = {}
    for row in records:
        by_class.setdefault(row["class"], []).append(row["name"])
    captions, is_spoiled = [], []
    for row in records:
        for number, caption in enumerate(wordings(row, run.captions)):
            wrong = run.spoiled and sample(row["key"], str(number), "spoiled") < SPOILED
            captions.append(spoiled_caption(row, by_class, number) if wrong else caption)
            is_spoiled.append(wrong)
    shape = (len(records), run.captions)
    return SimpleNamespace(
        images=images,
        text=study.tokenize([row["text"] for row in records]),
        captions=study.tokenize(captions).view(*shape, -1),
        is_spoiled=np.array(is_spoiled).reshape(shape),
        is_mismatched=torch.tensor([row["is_mismatched"] for row in records]),
        caption_is_wrong=torch.zeros(len(records), dtype=torch.bool),  # the noise study's trace, not used here
    )


def kept_captions(run: Run, data: SimpleNamespace, folder: Path) -> np.ndarray:
    """(n, K) booleans: the captions that the run's filter leaves."""
    if run.filter == "none":
        return np.ones_like(data.is_spoiled)
    if run.filter == "truth":
        return ~data.is_spoiled
    if run.filter == "random":
        return np.random.default_rng(run.seed).random(data.is_spoiled.shape) >= SPOILED
    scores = np.load(scores_path(folder, run))["image_caption_similarity"]
    return scores >= np.quantile(scores, SPOILED)


def scores_path(folder: Path, run: Run) -> Path:
    """Where the unfiltered run of the same seed leaves its similarities."""
    return folder / f"k{run.captions}_s{run.seed}.npz"


def train_and_measure(run: Run, folder: Path) -> dict:
    """The run's line of results."""
    started, cpu = time.time(), time.process_time()
    study.set_up(torch.device("cpu"), "fp32", run.seed, False, 1)
    data = make_data(run)
    kept = kept_captions(run, data, folder)
    numbers = np.argsort(~kept, axis=1, kind="stable")  # of a sample's captions, those that are left first
    counts = kept.sum(axis=1)

    def captions(index: Tensor, epoch: int) -> Tensor:
        samples = index.numpy()
        chosen = choose_captions("random", counts[samples], run.seed, epoch, samples)
        return data.captions[samples, numbers[samples, chosen]]

    model, _ = study.train_model(run, data, torch.from_numpy(np.flatnonzero(counts)), captions)
    row = {"key": run.key, "arm": run.arm, "captions": run.captions, "spoiled": run.spoiled, "filter": run.filter}
    row |= {"seed": run.seed, "samples": int((counts > 0).sum()), "kept": int(kept.sum())}
    row |= {"still_spoiled": float(data.is_spoiled[kept].mean()), **study.evaluate(model)}
    if run.spoiled and run.filter == "none":
        image = study.image_features(model, data.images)
        text = study.text_features(model, data.captions.flatten(0, 1)).view(*data.captions.shape[:2], -1)
        scores = torch.einsum("nd,nkd->nk", image, text).numpy()
        row["auc_image_caption_similarity"] = matched_auc(scores.ravel(), data.is_spoiled.ravel())
        with atomic_write(scores_path(folder, run)) as file:
            np.savez(file, image_caption_similarity=scores)
    return row | {"cpu_seconds": round(time.process_time() - cpu, 1), "seconds": round(time.time() - started, 1)}


def tables(rows: list[dict], total: int) -> str:
    """The page: Markdown."""
    parts = [
        "# The caption study: several captions of an image, and filtered ones\n",
        f"Written by `python benchmarks/caption_study.py`; {len(rows)} of its {total} runs are finished. What it "
        "means: [docs/evidence.md](../../docs/evidence.md).\n",
        "R@1 in %, on held-out styles: mean ± standard error over the seeds. Differences are paired: the same seed, so "
        "the same initial weights and, where no sample is left out, the same samples and augmentation.\n",
        "## Right captions, different wordings of each image\n",
        _table(rows, [f"k{k}|right|none" for k in CAPTIONS], "k1|right|none"),
        "## Three captions, 30 % of them spoiled, and what a filter removes\n",
        _table(rows, [*(f"k3|spoiled|{name}" for name in FILTERS), "k1|spoiled|none"], "k3|spoiled|none"),
    ]
    aucs = {row["seed"]: row["auc_image_caption_similarity"] for row in rows if row["arm"] == "k3|spoiled|none"}
    if aucs:
        parts.append(f"AUC of S_xc, right against spoiled captions: {report.cell(aucs, '.3f')}.\n")
    return "\n".join(parts)


def _table(rows: list[dict], arms: list[str], reference: str) -> str:
    def values(arm: str, name: str) -> report.Values:
        return {row["seed"]: row[name] for row in rows if row["arm"] == arm}

    body = []
    for arm in arms:
        captions, _, removed = arm.split("|")
        if not values(arm, METRICS[0]):
            continue
        kept = [f"{report.mean_and_error(values(arm, 'kept'))[0]:,.0f}"]
        kept.append(f"{100 * report.mean_and_error(values(arm, 'still_spoiled'))[0]:.1f} %")
        cells = []
        for metric in METRICS:
            own, other = values(arm, metric), values(reference, metric)
            cells += [report.cell(own), report.cell(report.paired(own, other), "+.1f") if arm != reference else ""]
        body.append([captions[1:], FILTERS[removed], *kept, *cells])
    titles = [cell for metric in METRICS for cell in (report.TITLES[metric], "difference")]
    return report.table(["captions per image", "removed", "captions left", "of them spoiled", *titles], body)


def main() -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=study.ROOT / "runs/caption_study", help="folder for scores")
    parser.add_argument("--results", type=file_path, default=RESULTS, help="JSON lines, one a finished run")
    parser.add_argument("--seeds", type=count, default=3, help="seeds 0, 1, … of every arm (default 3)")
    parser.add_argument("--only", type=pattern, help="the runs whose key matches, e.g. 'right' or 's0$'")
    parser.add_argument("--limit", type=count, metavar="N", help="at most N runs, then the tables")
    parser.add_argument("--list", action="store_true", help="print the keys of the runs and which are done")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    rows = report.read_rows(arguments.results)
    done = {row["key"] for row in rows}
    runs = all_runs(arguments.seeds)
    wanted = [run for run in runs if re.search(arguments.only or "", run.key)]
    if arguments.list:
        print("\n".join(f"{'done' if run.key in done else '    '} {run.key}" for run in wanted))
        return 0
    todo = [] if arguments.table else [run for run in wanted if run.key not in done][: arguments.limit]
    arguments.output.mkdir(parents=True, exist_ok=True)
    for run in todo:
        if run.filter == "clipscore" and not scores_path(arguments.output, run).exists():
            print(f"{run.key}: needs the scores of its unfiltered run; scoring first", flush=True)
            train_and_measure(Run(run.captions, True, "none", run.seed), arguments.output)
        row = train_and_measure(run, arguments.output)
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        with arguments.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        numbers = " ".join(f"{name} {row[name]:.1f}" for name in METRICS)
        print(f"{run.key}: {numbers} ({row['seconds']:.0f} s, {len(rows)} runs done)", flush=True)
    if rows:
        page = arguments.results.with_suffix(".md")
        with atomic_write(page, text=True) as file:
            file.write(tables(rows, len(runs)))
        print(page)
    return 0


if __name__ == "__main__":
    run_command(main)
