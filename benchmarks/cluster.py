"""What Ray costs a build: seconds for each piece of work, 1 worker and 2, and the driver's memory at 100,000 inputs.

  python benchmarks/cluster.py [--results FILE.json] [--pieces 300] [--tars 12] [--files 100000]

driver     memory of the process that holds the list of pieces and their results, for simulated input files
local      a small dataset in one process
1, 2       workers on this machine: pieces that do nothing, over the engine of `data2rec.py --engine ray`, then the
           same dataset. Each starts a Ray of its own, which takes ten seconds or more

Parts whose figures are in --results are not measured again: an interrupted run resumes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alip.command import CommandParser, count, file_path  # noqa: E402
from alip.errors import run_command  # noqa: E402
from alip.files import read_json, write_json  # noqa: E402

PER_TAR = 150
SIDES = 640, 480  # of its images, which are shrunk: a build has something to do
Figures = dict[str, float]


def nothing(job: None, number: int) -> int:
    """A piece of work without work."""
    return number


def memory() -> float:
    """MB that this process has for itself."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith("RssAnon"))


class Simulated:
    """The units of a source, without files."""

    def __init__(self, files: int):
        self.units = [f"crawl/tars/{number:08d}.tar" for number in range(files)]
        self.sizes = [300_000_000 + number for number in range(files)]


def driver(files: int) -> Figures:
    """MB for the list of pieces, their results and the plan of the shards, by the code of a build."""
    from alip.build.division import pieces_of
    from alip.build.units import plan_shards
    from alip.cluster.pieces import collect

    def outcomes() -> Iterator[tuple[tuple, dict]]:
        for (number,) in missing:
            rejects = {"truncated": number % 7, "missing-caption": number % 5}
            yield (number,), {"samples": 9000 + number % 100, "untouched": number, "rejects": rejects, "found": {}}

    before = memory()
    source = Simulated(files)
    pieces, sizes = pieces_of(source, list(range(files)), {})
    missing = {piece: key for key, piece in pieces.items()}
    done = collect(outcomes(), missing, {}, sizes, what="files", name=str, quiet=True)
    plan = plan_shards([(key, done[key]["samples"]) for key in pieces], 20_000)
    assert len(plan) > files // 3
    return {"files": files, "MB": round(memory() - before, 1)}


def write_tars(folder: Path, count: int) -> Path:
    """Tars of PER_TAR samples each."""
    from tests.helpers.shards import encoded, make_image, write_tar

    folder.mkdir()
    images = [encoded(make_image(number, *SIDES), quality=90) for number in range(10)]
    for tar in range(count):
        numbers = range(tar * PER_TAR, (tar + 1) * PER_TAR)
        texts = [f'{{"text": "raw text {i}", "caption": "caption {i}"}}'.encode() for i in numbers]
        samples = [{"jpg": images[i % 10], "json": text} for i, text in zip(numbers, texts)]
        write_tar(folder / f"{tar:05d}.tar", samples, [f"{i:07d}" for i in numbers])
    return folder


def build(tars: Path, output: Path, **options: Any) -> tuple[float, str]:
    """Seconds of a build, and the dataset's fingerprint."""
    from alip.build import writer
    from alip.build.open_source import open_source
    from alip.build.prepare import Policy

    begun = time.perf_counter()
    manifest = writer.build(open_source(str(tars)), output, policy=Policy(), quiet=True, **options).manifest
    return time.perf_counter() - begun, manifest.fingerprint


def local(tars: Path, folder: Path) -> dict[str, Any]:
    """The dataset in this process, the second time: what is loaded once is there then."""
    build(tars, folder / "warm" / "set", workers=0)
    seconds, fingerprint = build(tars, folder / "local" / "set", workers=0)
    return {"build_s": round(seconds, 2), "fingerprint": fingerprint}


def on_workers(workers: int, pieces: int, tars: Path, folder: Path) -> dict[str, Any]:
    """Empty pieces and the dataset, by Ray on this machine."""
    import ray

    from alip.cluster.ray_engine import RayEngine

    begun = time.perf_counter()
    # Its sockets have names of at most 107 bytes, which a temporary folder elsewhere may exceed.
    os.environ.setdefault("RAY_TMPDIR", "/tmp")
    ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    with RayEngine() as engine:
        assert len(list(engine.run(nothing, None, [(n,) for n in range(4 * workers)]))) == 4 * workers
        started = time.perf_counter()
        assert len(list(engine.run(nothing, None, [(n,) for n in range(pieces)]))) == pieces
        each = (time.perf_counter() - started) / pieces
        # Its workers load what a build needs before the clock starts.
        build(tars, folder / f"warm{workers}" / "set", engine=engine)
        seconds, fingerprint = build(tars, folder / f"ray{workers}" / "set", engine=engine)
    figures = {"start_s": round(started - begun, 1), "empty_piece_ms": round(1000 * each, 2)}
    return figures | {"pieces": pieces, "build_s": round(seconds, 2), "fingerprint": fingerprint}


def measured(results: Path, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a part: from the file, or measured and kept there."""
    found = read_json(results) if results.exists() else {}
    if name not in found:
        figures = measure()
        found = read_json(results) if results.exists() else {}
        write_json(results, {**found, name: figures})
        found[name] = figures
    print(f"{name:8} {found[name]}", flush=True)
    return found[name]


def main() -> None:
    """Prints the figures."""
    parser = CommandParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--results", type=file_path, default=Path("cluster.json"), help="default: %(default)s")
    parser.add_argument("--pieces", type=count, default=300)
    parser.add_argument("--files", type=count, default=100_000)
    parser.add_argument("--tars", type=count, default=12, help=f"of {PER_TAR} images, for the build")
    args = parser.parse_args()
    measured(args.results, "driver", lambda: driver(args.files))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tars = write_tars(folder / "tars", args.tars)
        alone = measured(args.results, "local", lambda: local(tars, folder))
        for workers in (1, 2):
            part = f"ray, {workers}"
            found = measured(args.results, part, lambda: on_workers(workers, args.pieces, tars, folder))  # noqa: B023
            assert found["fingerprint"] == alone["fingerprint"], "another dataset"


if __name__ == "__main__":
    run_command(main)
