"""What Ray costs a build: seconds for each piece of work, and the driver's memory at 100,000 inputs.

  python benchmarks/cluster.py [--pieces 2000] [--files 100000] [--tars 8]

overhead   pieces that do nothing, over the engine of `data2rec.py --engine ray` on this machine alone
build      a small dataset with 1 and 2 workers, and with `--engine local` for comparison
driver     memory of the process that holds the list of pieces and their results, for simulated input files
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def nothing(job: None, number: int) -> int:
    """A piece of work without work."""
    return number


def memory() -> float:
    """MB that this process has for itself."""
    return next(int(line.split()[1]) / 1000 for line in open("/proc/self/status") if line.startswith("RssAnon"))


def driver(files: int) -> float:
    """MB for the list of `files` input files, their results and the plan of the shards."""
    from alip.build.units import plan_shards

    before = memory()
    names = {number: f"crawl/tars/{number:08d}.tar" for number in range(files)}
    pieces = {number: (number,) for number in names}
    results = {}
    for number in pieces:
        rejects = {"truncated": number % 7, "missing-caption": number % 5}
        results[number] = {"samples": 9000 + number % 100, "untouched": number, "rejects": rejects, "found": {}}
    plan = plan_shards([(number, result["samples"]) for number, result in results.items()], 20_000)
    assert len(plan) > files // 3
    return memory() - before


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pieces", type=int, default=2000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--tars", type=int, default=8, help="of 200 images, for the build")
    args = parser.parse_args()
    print(f"driver      {driver(args.files):.0f} MB for {args.files:,} input files")

    import ray

    from alip.build import writer
    from alip.build.open_source import open_source
    from alip.build.prepare import Policy
    from alip.cluster.ray_engine import RayEngine
    from tests.helpers.shards import make_tars

    with tempfile.TemporaryDirectory() as folder:
        tars = make_tars(Path(folder) / "tars", 200 * args.tars, per_tar=200)

        def build(name: str, **options: object) -> tuple[float, str]:
            begun = time.perf_counter()
            output = Path(folder) / name / "set"
            manifest = writer.build(open_source(str(tars)), output, policy=Policy(), quiet=True, **options).manifest
            return time.perf_counter() - begun, manifest.fingerprint

        seconds, fingerprint = build("local", workers=0)
        print(f"build       {seconds:.2f} s in one process")
        for workers in (1, 2):
            ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
            engine = RayEngine()
            list(engine.run(nothing, None, [(n,) for n in range(20 * workers)]))  # the workers start
            begun = time.perf_counter()
            assert len(list(engine.run(nothing, None, [(n,) for n in range(args.pieces)]))) == args.pieces
            each = (time.perf_counter() - begun) / args.pieces
            seconds, other = build(f"ray{workers}", engine=engine)
            assert other == fingerprint
            print(f"{workers} worker(s) {1000 * each:.2f} ms for each empty piece; {seconds:.2f} s for the build")
            engine.close()


if __name__ == "__main__":
    main()
