"""Opening a dataset of 15 million, 400 million and 2 billion samples: time and memory of one rank.

    python benchmarks/scale.py [--samples 15061515 400000000 2000000000] [--work FOLDER]

Each dataset is a manifest of shards of 20,000 samples whose files are links to one sparse rec file of 700 MB and one
index, so nothing needs their room, and the paths that are measured are those of real data: the manifest is read and
checked, an epoch's order is made, the 16,384 samples of a window are located in the shards that hold them, whose files
and indexes are opened for it. Each row is a process of its own. Memory is RssAnon: what a rank has for itself. Mapped
indexes are not in it, their pages are shared by all ranks of a machine and given back when memory is short.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from comparisons import output_of  # noqa: E402

from alip.command import CommandParser, count  # noqa: E402
from alip.errors import run_command  # noqa: E402

PER_SHARD = 20_000
SHARD_BYTES = 700_000_000
MEASURE = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from alip.data.order import create_order
from alip.data.sample_reader import Records
from alip.data.shards import load_manifest
import pyarrow, jsonschema
def memory():
    return next(int(line.split()[1]) / 1000 for line in open("/proc/self/status") if line.startswith("RssAnon"))
found = {}
def measured(name, call):
    before, begun = memory(), time.perf_counter()
    result = call()
    found[name] = [time.perf_counter() - begun, memory() - before]
    return result
manifest = measured("manifest", lambda: load_manifest(sys.argv[2]))
records = measured("records", lambda: Records(manifest, 49408))
order = measured("order", lambda: create_order(sys.argv[3], manifest.starts, 0, 0))
middle = manifest.samples // 2
index = measured("window", lambda: order.slice(middle, middle + 16384))
locate = lambda: sum(len(starts) for _, starts, _ in records.byte_ranges(index))
assert measured("open", locate) == len(index)
measured("again", locate)
found["shards"] = len({int(shard) for shard in manifest.starts.searchsorted(index, side="right")})
print(json.dumps(found))
"""


def make(work: Path, samples: int) -> Path:
    """DIR/NAME of a dataset of links."""
    from alip.data.shards import Manifest, Shard

    folder = work / str(samples)
    if (folder / "set.json").exists():
        return folder / "set"
    folder.mkdir(parents=True, exist_ok=True)
    step = SHARD_BYTES // PER_SHARD // 4 * 4
    with open(work / "one.rec", "wb") as file:
        file.truncate(SHARD_BYTES)
    (work / "one.idx").write_text("".join(f"{i}\t{i * step}\n" for i in range(PER_SHARD)))
    shards = []
    for number in range(-(-samples // PER_SHARD)):
        name = f"set-{number:05d}"
        for kind in ("rec", "idx"):
            (folder / f"{name}.{kind}").symlink_to(work / f"one.{kind}")
        sums = f"{number:064x}", f"{number + 1:064x}"
        shards.append(
            Shard(
                f"{name}.rec", f"{name}.idx", f"{name}.parquet", PER_SHARD, SHARD_BYTES, sums[0], 49407, sums[1], True
            )
        )
    Manifest("set", folder, PER_SHARD * len(shards), tuple(shards)).save()
    return folder / "set"


def main() -> None:
    """Prints the table."""
    parser = CommandParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--samples", type=count, nargs="+", default=[15_061_515, 400_000_000, 2_000_000_000])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "alip-scale")
    args = parser.parse_args()

    from alip.text_table import markdown_table

    rows = []
    for samples in args.samples:
        data = make(args.work, samples)
        for kind in ("blocks", "feistel", "shards"):
            command = [sys.executable, "-c", MEASURE, str(ROOT), str(data), kind]
            found = json.loads(output_of(command))
            shown = [f"{found[name][0]:.3f} s, {max(0, found[name][1]):.0f} MB" for name in ("manifest", "order")]
            times = [f"{1000 * found[name][0]:.0f} ms" for name in ("window", "open", "again")]
            total = sum(found[name][1] for name in ("manifest", "records", "order", "window", "open", "again"))
            rows.append([f"{samples / 1e6:,.0f} M", kind, *shown, *times, str(found["shards"]), f"{total:.0f} MB"])
    head = [
        "samples",
        "order",
        "manifest",
        "an epoch's order",
        "16,384 samples",
        "located: first",
        "again",
        "in shards",
    ]
    print(markdown_table([*head, "memory of a rank"], rows))


if __name__ == "__main__":
    run_command(main)
