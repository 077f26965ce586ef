"""The gate report page of a large dataset: its size, memory and time, with made-up scores over the demo's images.

    python data2rec.py --input 'scripts/demo/train-*.tar' --output DIR/train --samples-per-shard 1000
    python benchmarks/gate_page.py --data DIR/train [--samples 1000000] [--output DIR]

The dataset is the demo's shards, linked as often as it takes, with other texts and scores for every sample; what is
measured is what `python -m alip.eval.gates` does once the samples are scored.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alip.command import CommandParser, count
from alip.data.score_table import ROWS, SCORES, ScoreTable
from alip.data.shards import Manifest, load_manifest
from alip.errors import run_command
from alip.eval.gates.page import write_page
from alip.eval.gates.page_data import collect
from alip.eval.gates.scoring import write_scores
from alip.files import real_path

WORDS = (
    "red",
    "blue",
    "small",
    "old",
    "happy",
    "city",
    "river",
    "house",
    "cat",
    "tree",
    "holiday",
    "photo",
    "by",
    "the",
)
MISMATCHED = 0.4


def repeat(manifest: Manifest, samples: int, folder: Path) -> Manifest:
    """At least so many samples: links to the manifest's rec files and indexes under new names."""
    shards, found = [], 0
    while found < samples:
        for shard in manifest.shards:
            name = f"{manifest.name}-{len(shards):05d}"
            for suffix, file in ((".rec", shard.rec), (".idx", shard.idx)):
                (folder / (name + suffix)).symlink_to(real_path(manifest.path(file)))
            shards.append(replace(shard, rec=name + ".rec", idx=name + ".idx", sidecar=None))
        found += manifest.samples
    return replace(manifest, folder=folder, samples=found, shards=tuple(shards))


def made_up_rows(manifest: Manifest, labels: bool) -> Iterator[dict]:
    """Rows of the table: texts of two to thirty words, scores that separate the labels as a trained model's do."""
    generator = np.random.default_rng(0)
    for start in range(0, manifest.samples, ROWS):
        index = np.arange(start, min(start + ROWS, manifest.samples))
        positions = [manifest.locate(int(one)) for one in index]
        texts = [" ".join(generator.choice(WORDS, count)) for count in generator.integers(2, 31, len(index))]
        wrong = generator.random(len(index)) < MISMATCHED
        scores = {name: generator.normal(0.5 - 0.3 * wrong, 0.15).astype(np.float32) for name in SCORES}
        content = {
            "index": index,
            "key": [f"sample-{one:09d}" for one in index],
            "shard": [manifest.shards[shard].rec for shard, _ in positions],
            "record": np.array([record for _, record in positions], dtype=np.int32),
            "text": texts,
            "caption": [f"a photo of {text[:60]}" for text in texts],
            **scores,
        }
        yield content | ({"is_mismatched": wrong} if labels else {})


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR/NAME", help="the demo's shards")
    parser.add_argument("--samples", type=count, default=1_000_000, help="at least so many (default 1000000)")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for gates.parquet and gates.html")
    parser.add_argument("--no-labels", action="store_true", help="as a dataset of the web: no ROC curves")
    arguments = parser.parse_args()
    labels = [] if arguments.no_labels else ["is_mismatched"]
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "gates.parquet"
    with tempfile.TemporaryDirectory(dir=arguments.output) as folder:
        manifest = repeat(load_manifest(arguments.data), arguments.samples, Path(folder))
        write_scores(path, manifest, made_up_rows(manifest, bool(labels)), labels)
        before, started, cpu = peak_memory(), time.perf_counter(), time.process_time()
        with ScoreTable(path) as table:
            size = write_page(arguments.output / "gates.html", collect(table, manifest))
    used = peak_memory() - before
    print(
        f"{manifest.samples:,} samples in {len(manifest.shards):,} shards, table {path.stat().st_size / 1e6:.0f} MB: "
        f"page {size / 1e6:.1f} MB, {time.perf_counter() - started:.0f} s ({time.process_time() - cpu:.0f} s of "
        f"processor time), peak memory {peak_memory() / 1e6:.0f} MB, of which {used / 1e6:.0f} MB beyond the table's "
        "writing"
    )


if __name__ == "__main__":
    run_command(main)
