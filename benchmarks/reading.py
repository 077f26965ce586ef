"""What reading costs before anything is decoded: index, records, read-ahead.

    python benchmarks/reading.py                 # 4 shards of 8,000 records of 25 kB, an index of 15 million lines

Prints
  index      seconds of processor time and memory to parse it, beside NumPy's parse of the whole text at once
  records    microseconds of processor time a sample, from a warm cache: with CRC-32, without (as released files); and
             what of them the system's copy of the bytes is, outside Python's lock
  host       the same of what else Python does for a sample: crops, the texts' plan, handing a batch to DALI
  cold       MB/s of the loader's reading thread after the files were dropped from the cache, and how often it had to
             wait for the disk, with read-ahead and without, beside reading the files from end to end
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from alip.command import CommandParser, count  # noqa: E402
from alip.errors import run_command  # noqa: E402

SMALL = {
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PARSE = """
import sys, time
import numpy as np
sys.path.insert(0, sys.argv[1])
from alip.data.recordio import read_index
def whole(path):
    return np.array(open(path, "rb").read().split(), dtype=np.int64)
def peak():  # unlike getrusage's, not the parent's
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, start = peak(), time.process_time()
{"blocks": read_index, "whole": whole}[sys.argv[2]](sys.argv[3])
print(time.process_time() - start, peak() - before)
"""


class NoDecoder:
    """Takes batches and does nothing with them."""

    def submit(self, encoded, params) -> None:
        """Ignores a batch."""

    def drain(self) -> None:
        """Has nothing in flight."""


def make(work: Path, records: int, lines: int) -> None:
    """Shards with and without CRC-32 (a JPEG's header before random bytes), and a long index."""
    from alip.data.recordio import Writer, pack, stamp
    from alip.tokens import pack_label, tokenize
    from tests.helpers.shards import encoded, make_image

    work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    label = pack_label(*tokenize(["a raw text", "its caption"]).numpy())
    head, pool = encoded(make_image(0, 341, 256), quality=90)[:700], rng.bytes(1 << 22)
    for kind in ("crc", "released"):
        (work / kind).mkdir(exist_ok=True)
        for shard in range(4):
            stem = work / kind / f"{shard}"
            with Writer(stem.with_suffix(".rec"), stem.with_suffix(".idx")) as writer:
                for number in range(records):
                    size, at = int(rng.integers(15_000, 35_000)), int(rng.integers(0, 1 << 21))
                    payload = pack(label, head + pool[at : at + size], number)
                    writer.write(stamp(payload, number) if kind == "crc" else payload)
    offsets = np.cumsum(rng.integers(1000, 10_000, lines) * 4)
    with open(work / "long.index", "w") as file:
        for first in range(0, lines, 500_000):
            some = offsets[first : first + 500_000].tolist()
            file.writelines(f"{first + i}\t{offset}\n" for i, offset in enumerate(some))


def parse_index(work: Path) -> None:
    """Each way in a process of its own: memory is that of its peak."""
    from comparisons import record

    for way in ("blocks", "whole"):
        command = [sys.executable, "-c", PARSE, str(ROOT), way, str(work / "long.index")]
        seconds, megabytes = map(float, subprocess.check_output(command, text=True).split())
        variant = {"blocks": "ours", "whole": "NumPy, all at once"}[way]
        record("parsing an index", variant, "s", [seconds], more_is_better=False)
        record("parsing an index, memory", variant, "MB", [megabytes], more_is_better=False)
        print(f"index, {way:<8} {seconds:6.2f} s of processor time, {megabytes:6.0f} MB")


def read_records(work: Path) -> None:
    """The best of four passes over 8,192 samples, and of these what the system takes to copy the bytes: for that time
    Python's lock is free, and the training thread can use it."""
    from comparisons import record

    from alip.data.order import EpochOrder
    from alip.data.sample_reader import Records
    from alip.data.shards import load_manifest

    for kind in ("crc", "released"):
        records = Records(load_manifest(work / kind), 49408)
        order = EpochOrder(records.manifest.samples, 0, 0)
        count = min(8192, records.manifest.samples) // 512 * 512
        best, copies = 1.0, 1.0
        for number in range(8):
            # In turn: timing each copy costs something itself.
            with copying() if number % 2 else contextlib.nullcontext([]) as copied:
                start = time.thread_time()
                for at in range(0, count, 512):
                    records.read(order.slice(at, at + 512))
                seconds = (time.thread_time() - start) / count
            if copied:
                copies = min(copies, sum(copied) / count)
            else:
                best = min(best, seconds)
        record("Python's cost of a sample", f"reading, {kind}", "µs", [1e6 * (best - copies)], more_is_better=False)
        print(
            f"records, {kind:<9} {1e6 * best:5.2f} µs of processor time a sample, {1e6 * copies:.2f} the system's copy"
        )


@contextlib.contextmanager
def copying() -> Iterator[list[float]]:
    """Processor seconds of each `os.preadv` meanwhile, without what the clock costs."""
    seconds, preadv, clock = [], os.preadv, time.thread_time
    own = min(-(clock() - clock()) for _ in range(1000))

    def timed(*arguments):
        start = clock()
        count = preadv(*arguments)
        seconds.append(clock() - start - own)
        return count

    os.preadv = timed
    try:
        yield seconds
    finally:
        os.preadv = preadv


def hand_over(work: Path, batch: int = 512) -> None:
    """The best of three batches, each step by itself."""
    from comparisons import record

    from alip.data.augment import Augmentation, sample_params
    from alip.data.batch import prepare_texts
    from alip.data.decoders import DaliDecoder, PixelFormat
    from alip.data.sample_reader import Records
    from alip.data.shards import load_manifest
    from alip.model import create_model

    torch.set_num_threads(1)  # of which the clock below counts one
    model = create_model({**SMALL, "embed_dim": 32})
    index = np.arange(batch)
    tokens, encoded, sizes = Records(load_manifest(work / "released"), 49408).read(index)
    params = sample_params(Augmentation(), sizes, 224, 0, 0, index)
    decoder = DaliDecoder(PixelFormat(224, (0, 0, 0), (1, 1, 1)), Augmentation(), batch, 1, "cpu")
    both = torch.from_numpy(np.concatenate(np.split(tokens, 2, axis=1)))
    pipes = [decoder._build(batch, 1, 3) for _ in range(3)]  # a pipeline takes few batches before it has to run
    jobs = {
        "crops": lambda n: sample_params(Augmentation(), sizes, 224, 0, 0, index),
        "texts' plan": lambda n: prepare_texts(both, model.plan_texts, torch.device("cpu")),
        "feeding DALI": lambda n: decoder._feed(pipes[n], encoded, params),
    }
    for name, job in jobs.items():
        best = 1.0
        for n in range(len(pipes)):
            start = time.thread_time()
            job(n)
            best = min(best, (time.thread_time() - start) / batch)
        record("Python's cost of a sample", name, "µs", [1e6 * best], more_is_better=False)
        print(f"host, {name:<12} {1e6 * best:5.2f} µs of processor time a sample")


def read_cold(work: Path, ahead: bool) -> None:
    """One epoch of the reading thread from a cold cache."""
    from comparisons import record

    from alip.data import read_ahead
    from alip.data.augment import Augmentation
    from alip.data.decoders import PixelFormat
    from alip.data.loader import Loader
    from alip.data.sample_reader import Records
    from alip.data.shards import load_manifest
    from alip.distributed import World

    read_ahead.AVAILABLE = ahead
    records = Records(load_manifest(work / "crc"), 49408)
    form = PixelFormat(224, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
    loader = Loader(records, NoDecoder(), 512, form, World(), 0, Augmentation(), True, True)
    waits, read = [], records.read

    def counted(index, *choose):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        result = read(index, *choose)
        waits.append(resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before)
        return result

    records.read = counted
    drop_cache(work)
    requests: queue.Queue = queue.Queue(2)
    threading.Thread(target=loader._read, args=(0, 0, requests, threading.Event()), daemon=True).start()
    start, size = time.perf_counter(), 0
    for _ in range(loader.batches_per_epoch):
        request = requests.get()
        if isinstance(request, BaseException):
            raise request
        size += sum(len(one) for one in request.encoded)
    seconds = time.perf_counter() - start
    count = 512 * loader.batches_per_epoch
    record("reading from a cold cache", "ours" if ahead else "without read-ahead", "MB/s", [size / seconds / 1e6])
    print(
        f"cold, {'with read-ahead' if ahead else 'without':<16} {size / seconds / 1e6:6.0f} MB/s, "
        f"{count / seconds:7.0f} samples/s, {1000 * sum(waits) / count:5.0f} waits in 1,000 samples"
    )


def read_through(work: Path) -> None:
    """The files from end to end, from a cold cache."""
    from comparisons import record

    drop_cache(work)
    start, size = time.perf_counter(), 0
    for path in sorted((work / "crc").glob("*.rec")):
        with open(path, "rb", buffering=0) as file:
            while block := file.read(1 << 22):
                size += len(block)
    rate = size / (time.perf_counter() - start) / 1e6
    record("reading from a cold cache", "the files from end to end", "MB/s", [rate])
    print(f"cold, {'end to end':<16} {rate:6.0f} MB/s")


def drop_cache(work: Path) -> None:
    """Takes the rec files out of the system's cache."""
    for path in (work / "crc").glob("*.rec"):
        descriptor = os.open(path, os.O_RDWR)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    """Makes the data once, then measures."""
    parser = CommandParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmark-reading", help="work folder")
    parser.add_argument("--records", type=count, default=8000, help="of each of four shards")
    parser.add_argument("--lines", type=count, default=15_000_000, help="of the long index")
    args = parser.parse_args()
    made = args.work / f"made-{args.records}-{args.lines}"
    if not made.exists():
        make(args.work, args.records, args.lines)
        made.touch()
    parse_index(args.work)
    read_records(args.work)
    hand_over(args.work)
    read_through(args.work)
    for ahead in (False, True):
        read_cold(args.work, ahead)


if __name__ == "__main__":
    run_command(main)
