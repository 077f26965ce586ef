"""Images a second and CPU use of reading training batches: ours, a bare DALI pipeline, and open_clip's.

    python benchmarks/loader.py                       # 1 and 2 threads, 224 pixels
    python benchmarks/loader.py --threads 8 --samples 20000

Same photographs (JPEG, short side 256), same crop (area 0.7–1, aspect 0.8–1.25), same size, flip and normalisation:
  ours       create_loader on rec shards: 2 × 77 tokens read from the label, order and crops from the seed
  bare DALI  fn.readers.mxnet → image_random_crop → resize → crop_mirror_normalize, nothing else: the floor
  plain      create_loader with reader="torch" (Pillow)
  open_clip  get_wds_dataset of open_clip_train on WebDataset tars, its worker processes; one text, tokenized as it goes
Each measurement is a process of its own; contestants take turns, the best of all rounds counts. open_clip's pipeline
needs webdataset 0.2.86, which gets an environment of its own under the work folder (it uses this one's torch).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import sysconfig
import time
import venv
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from alip.command import CommandParser, count  # noqa: E402
from alip.errors import run_command  # noqa: E402

SIZE, AREA, ASPECT = 224, (0.7, 1.0), (0.8, 1.25)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CONTESTANTS = ("ours", "bare DALI", "plain", "open_clip")


def our_batches(work: Path, threads: int, batch_size: int, reader: str):
    """Endless batches of our loader."""
    from alip.data.loader import Augmentation, create_loader
    from alip.distributed import World

    form = {"image_size": SIZE, "mean": MEAN, "std": STD, "augmentation": Augmentation(AREA, ASPECT)}
    loader = create_loader(work / "set", batch_size, world=World(), threads=threads, reader=reader, **form)
    epoch = 0
    while True:
        for batch in loader.epoch(epoch):
            yield len(batch.image)
        epoch += 1


def bare_dali_batches(work: Path, threads: int, batch_size: int):
    """Endless batches of the smallest pipeline that does the same."""
    from nvidia.dali import Pipeline, fn, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    from alip.data.shards import load_manifest, merged_index

    index = work / "merged.idx"
    shards = merged_index(load_manifest(work / "set"), index)
    pipe = Pipeline(batch_size=batch_size, num_threads=threads, device_id=None, seed=1)
    with pipe:
        image, label = fn.readers.mxnet(path=shards, index_path=[str(index)], random_shuffle=True, name="reader")
        image = fn.decoders.image_random_crop(image, random_area=AREA, random_aspect_ratio=ASPECT)
        image = fn.resize(image, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR)
        image = fn.crop_mirror_normalize(
            image,
            mirror=fn.random.coin_flip(),
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            output_layout="CHW",
        )
        pipe.set_outputs(image, label)
    pipe.build()
    while True:
        for batch in DALIGenericIterator([pipe], ["image", "label"], auto_reset=True):
            yield len(batch[0]["image"])


def open_clip_batches(work: Path, threads: int, batch_size: int, samples: int):
    """Endless batches of open_clip's training pipeline."""
    import open_clip
    from open_clip_train.data import get_wds_dataset
    from torchvision import transforms

    preprocess = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, AREA, ASPECT),  # bilinear, as ours
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    tars = sorted(str(path) for path in (work / "tars").glob("*.tar"))
    args = Namespace(
        train_data=f"{tars[0][:-9]}{{00000..{len(tars) - 1:05d}}}.tar",
        train_num_samples=samples,
        dataset_resampled=False,
        train_data_upsampling_factors=None,
        seed=0,
        batch_size=batch_size,
        workers=threads,
        world_size=1,
    )
    data = get_wds_dataset(args, preprocess, True, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    epoch = 0
    while True:
        data.set_epoch(epoch)
        for image, _ in data.dataloader:
            yield len(image)
        epoch += 1


def measure(contestant: str, work: Path, threads: int, batch_size: int, samples: int) -> dict[str, float]:
    """Images a second and busy cores over `samples` images, after a start that is not counted."""
    import torch

    torch.set_num_threads(1)
    batches = {
        "ours": lambda: our_batches(work, threads, batch_size, "dali"),
        "plain": lambda: our_batches(work, threads, batch_size, "torch"),
        "bare DALI": lambda: bare_dali_batches(work, threads, batch_size),
        "open_clip": lambda: open_clip_batches(work, threads, batch_size, samples),
    }[contestant]()
    for _, _count in zip(range(4), batches):
        pass
    before, start, seen = _cpu_seconds(), time.perf_counter(), 0
    while seen < samples:
        seen += next(batches)
    seconds = time.perf_counter() - start
    return {"rate": seen / seconds, "cores": (_cpu_seconds() - before) / seconds}


def _cpu_seconds() -> float:
    """Of this process and its living children."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = resource.getrusage(resource.RUSAGE_SELF)
    seconds = total.ru_utime + total.ru_stime
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / ticks
    return seconds


def prepare(work: Path, samples: int) -> str:
    """Photographs, tars, shards, and the environment for open_clip's pipeline; the Python of the latter."""
    from photos import make_photos

    from alip.build import writer
    from alip.build.open_source import open_source
    from alip.build.prepare import Policy

    if not (work / f"made-{samples}").exists():
        make_photos(work, samples, 341, 256, 90, tars=8)
        source = open_source(str(work / "tars"))
        writer.build(source, work / "set", policy=Policy(), workers=2, samples_per_shard=1000, overwrite=True)
        (work / f"made-{samples}").touch()
    environment = work / "environment"
    python = environment / "bin" / "python"
    if not (environment / "complete").exists():
        venv.create(environment, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "webdataset==0.2.86", "braceexpand", "pandas"], check=True
        )
        theirs = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True
        ).strip()
        Path(theirs, "torch_from_outside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        (environment / "complete").touch()
    return str(python)


def main() -> None:
    """Prints the table."""
    from comparisons import record

    parser = CommandParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmark-loader", help="work folder")
    parser.add_argument("--samples", type=count, default=2000)
    parser.add_argument("--batch-size", type=count, default=64)
    parser.add_argument("--threads", type=count, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.work, args.threads[0], args.batch_size, args.samples)))
        return
    pythons = dict.fromkeys(CONTESTANTS, sys.executable) | {"open_clip": prepare(args.work, args.samples)}
    best: dict[tuple[str, int], dict[str, float]] = {}
    seen: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for threads in args.threads:
            for name in CONTESTANTS:
                command = [pythons[name], "-W", "ignore", __file__, "--only", name, "--work", str(args.work)]
                command += ["--samples", str(args.samples), "--batch-size", str(args.batch_size)]
                command += ["--threads", str(threads)]
                line = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).splitlines()[-1]
                result = json.loads(line)
                key = (name, threads)
                seen.setdefault(key, []).append(result["rate"])
                best[key] = max(best.get(key, result), result, key=lambda one: one["rate"])
    for (name, threads), rates in seen.items():
        record(f"loader, {threads} thread{'s' * (threads != 1)}", name, "images/s", rates)
    print(f"{'threads':>7}  {'reader':<10}  {'images/s':>8}  {'busy cores':>10}  {'per core':>8}  {'ours is':>8}")
    for threads in args.threads:
        ours = best["ours", threads]["rate"]
        for name in CONTESTANTS:
            one = best[name, threads]
            print(
                f"{threads:>7}  {name:<10}  {one['rate']:>8.0f}  {one['cores']:>10.2f}  "
                f"{one['rate'] / one['cores']:>8.0f}  {ours / one['rate']:>7.2f}×"
            )


if __name__ == "__main__":
    run_command(main)
