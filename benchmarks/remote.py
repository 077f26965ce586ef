"""Reading for training from an S3 server on loopback through a small cache, beside local disk and MosaicML Streaming.

    python benchmarks/remote.py [--shards 44] [--records 500] [--streaming-python ENV/bin/python]

The server is moto's, a process of its own. Every row is read by fresh processes, nothing is decoded:
  samples/s      over an epoch, with one reading thread (Streaming: one worker process)
  first batch    seconds from opening the dataset to the first batch, with an empty cache
  resume         seconds to the first batch of a process that resumes in mid-epoch, with the cache as it was left
A small cache holds a tenth of the data. MosaicML Streaming needs older packages, so it has an environment of its own
(pip install mosaicml-streaming==0.13.0), named by --streaming-python; without it its rows are left out. It shuffles in
blocks: of as many samples as our windows have, and as it does by default, where a block is far larger than these data.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alip.command import CommandParser, count  # noqa: E402
from alip.errors import run_command  # noqa: E402

BATCH = 64
BYTES = 25_000  # of an image
BUCKET = "bench"


def ours(data: str, order: str, cache: str, size: str, start: str) -> dict:
    """An epoch, from sample `start` on: samples/s and seconds to the first batch."""
    sys.path.insert(0, str(ROOT))
    from alip.data.loader import create_loader
    from alip.distributed import World

    begun = time.perf_counter()
    form = {"image_size": 224, "mean": (0, 0, 0), "std": (1, 1, 1), "reader": "torch"}
    options = {"cache_dir": cache, "cache_size": int(size)} if "://" in data else {}
    loader = create_loader(data, BATCH, world=World(), data_order=order, window_shards=2, **form, **options)
    requests: queue.Queue = queue.Queue(2)
    reading = threading.Thread(target=loader._read, args=(0, int(start), requests, threading.Event()), daemon=True)
    reading.start()
    first, count = 0.0, loader.batches_from(int(start))
    for number in range(count):
        request = requests.get()
        if isinstance(request, BaseException):
            raise request
        if number == 0:
            first = time.perf_counter() - begun
    return {"rate": (count - 1) * BATCH / (time.perf_counter() - begun - first), "first": first}


def uncollated(batch: list) -> tuple[list]:
    """A batch as it is; Streaming takes its length from the first entry."""
    return (batch,)


def streaming(data: str, order: str, cache: str, size: str, start: str) -> dict:
    """The same with MosaicML Streaming. order: samples of a shuffled block; "default": as it chooses."""
    from streaming import StreamingDataLoader, StreamingDataset

    begun = time.perf_counter()
    options = {"shuffle": True, "shuffle_algo": "py1e", "batch_size": BATCH, "num_canonical_nodes": 1}
    if order != "default":
        options["shuffle_block_size"] = int(order)
    dataset = StreamingDataset(remote=data, local=cache, cache_limit=int(size), **options)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=1, collate_fn=uncollated, drop_last=True)
    if int(start):
        state = {"epoch": 0, "sample_in_epoch": int(start), "num_canonical_nodes": 1, "shuffle_seed": 9176}
        dataset.load_state_dict({**state, "initial_physical_nodes": 1})
    first, count = 0.0, 0
    for count, _ in enumerate(loader, 1):
        if count == 1:
            first = time.perf_counter() - begun
    return {"rate": (count - 1) * BATCH / (time.perf_counter() - begun - first), "first": first}


def write_streaming(source: str, target: str, *_: str) -> dict:
    """The records of `source` (JSON lines of hexadecimal seeds) as MDS shards."""
    import numpy as np
    from streaming import MDSWriter

    count, per_shard = map(int, source.split(","))
    with MDSWriter(
        out=target, columns={"label": "bytes", "image": "bytes"}, size_limit=per_shard * (BYTES + 700)
    ) as out:
        for number in range(count):
            out.write({"label": bytes(616), "image": np.random.default_rng(number).bytes(BYTES)})
    return {}


def write_ours(folder: Path, shards: int, records: int) -> Path:
    """DIR/NAME of records that read like images: a JPEG's header before random bytes."""
    import numpy as np

    from alip.build.prepare import PreparedSample
    from alip.build.shard_writer import ShardWriter
    from alip.data.shards import Manifest
    from alip.tokens import pack_label, tokenize
    from tests.helpers.shards import encoded, make_image

    label = pack_label(*tokenize(["a raw text", "a caption"]).numpy())
    head = encoded(make_image(0))[:400]
    folder.mkdir(parents=True)
    made = []
    for shard in range(shards):
        writer = ShardWriter(folder, f"set-{shard:05d}", folder)
        for record in range(records):
            number = shard * records + record
            image = head + np.random.default_rng(number).bytes(BYTES - len(head))
            writer.add(PreparedSample(label, image, (str(number), "t", "c", "{}", "s"), True, 0, number, None))
        made.append(writer.commit())
    Manifest("set", folder, shards * records, tuple(made)).save()
    return folder / "set"


def child(python: str, function: str, *words: str, env: dict[str, str] | None = None) -> dict:
    """A function of this file in a process of its own."""
    command = [python, "-W", "ignore", __file__, "--child", function, *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def row(python: str, function: str, data: str, order: str, work: Path, size: int, middle: int) -> list[float]:
    """One row's figures: an epoch with an empty cache, then a resume in its middle with what is left there."""
    cache = work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    whole = child(python, function, data, order, str(cache), str(size), "0")
    resumed = child(python, function, data, order, str(cache), str(size), str(middle))
    print(f"{data} {order} {size}: {whole} {resumed}", file=sys.stderr, flush=True)
    return [whole["rate"], whole["first"], resumed["first"]]


def print_table(rows: dict[str, list[float]]) -> None:
    """The figures, and how many times better ours are (above 1: more samples/s, fewer seconds)."""
    from alip.text_table import markdown_table

    shown = [
        [name, f"{rate:,.0f}", f"{first:.2f} s", f"{resume:.2f} s"] for name, (rate, first, resume) in rows.items()
    ]
    print(markdown_table(["", "samples/s", "first batch", "resume"], shown), end="\n\n")
    compared = []
    for name, theirs in rows.items():
        ours = rows["S3, cache of all" if name.endswith("of all") else "S3, cache of a tenth"]
        if not name.startswith("S3"):
            ratios = ours[0] / theirs[0], theirs[1] / ours[1], theirs[2] / ours[2]
            compared.append([f"ours from S3 to {name}", *(f"{ratio:.2f} ×" for ratio in ratios)])
    print(markdown_table(["", "samples/s", "first batch", "resume"], compared))


def serve() -> tuple[subprocess.Popen, dict[str, str]]:
    """The server, and the variables with which a process finds it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    return server, {**keys, "AWS_ENDPOINT_URL": url, "S3_ENDPOINT_URL": url}


def main() -> None:
    """Prints the table."""
    parser = CommandParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shards", type=count, default=44)
    parser.add_argument("--records", type=count, default=500, help="of a shard")
    parser.add_argument("--streaming-python", help="of an environment with mosaicml-streaming")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(globals()[args.child[0]](*args.child[1:])))
        return
    sys.path.insert(0, str(ROOT))
    from alip.remote.access import filesystem
    from alip.remote.writing import upload

    samples = args.shards * args.records
    size, middle = samples * (BYTES + 760) // 10, samples // 2 // BATCH * BATCH
    rows = {}
    server, environment = serve()
    os.environ.update(environment)
    try:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            local = write_ours(work / "ours", args.shards, args.records)
            time.sleep(2)
            filesystem(f"s3://{BUCKET}")[0].mkdir(BUCKET)
            for path in local.parent.iterdir():
                upload(path, f"s3://{BUCKET}/ours/{path.name}")
            for name, data, order, room in (
                ("local disk, blocks", str(local), "blocks", size),
                ("local disk, shards", str(local), "shards", size),
                ("S3, cache of a tenth", f"s3://{BUCKET}/ours/set", "shards", size),
                ("S3, cache of all", f"s3://{BUCKET}/ours/set", "shards", 20 * size),
            ):
                rows[name] = row(sys.executable, "ours", data, order, work, room, middle)
            if args.streaming_python:
                child(args.streaming_python, "write_streaming", f"{samples},{args.records}", str(work / "mds"))
                for path in (work / "mds").iterdir():
                    upload(path, f"s3://{BUCKET}/mds/{path.name}")
                python = args.streaming_python
                for name, block, room in (
                    ("Streaming, blocks as ours, cache of a tenth", str(2 * args.records), size),
                    ("Streaming, blocks as ours, cache of all", str(2 * args.records), 20 * size),
                    ("Streaming, its own blocks, cache of a tenth", "default", size),
                    ("Streaming, its own blocks, cache of all", "default", 20 * size),
                ):
                    rows[name] = row(python, "streaming", f"s3://{BUCKET}/mds", block, work, room, middle)
    finally:
        server.terminate()
        server.wait()
    print_table(rows)


if __name__ == "__main__":
    run_command(main)
