"""Whole evaluations, ours and clip-benchmark's, on the same files with the same weights, in turn, in one run.

python benchmarks/eval_peer.py                                   ViT-B/32 with random weights, images of 500 × 375
python benchmarks/eval_peer.py --model tiny --images 2000        where the model costs little: decoding alone
python benchmarks/eval_peer.py --checkpoint runs/quickstart --data data/demo          the demo's images

Every evaluation is a process of its own, from its start to its numbers. Both have the same batch size, worker processes
and precision, and must find the same accuracy. Also printed: how long decoding and preprocessing alone take.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alip import command
from alip.errors import run_command

TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 128, "layers": 2, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
WORDS = [
    "abbey",
    "barn",
    "castle",
    "dam",
    "farm",
    "garage",
    "harbor",
    "igloo",
    "jail",
    "lake",
    "market",
    "office",
    "palace",
    "ruin",
    "shed",
    "tower",
]


SHARDS = 4  # the peer's workers need one each
CASES = ["zeroshot", "retrieval", "three lists", "three datasets", "all"]  # the last: all others in one run

# Data in CLIP_benchmark's layout ---------------------------------------------------------------------------------


def write_dataset(
    folder: Path, samples: Sequence[tuple[str, bytes, str]], names: Sequence[str], templates: Sequence[str]
):
    """A WebDataset benchmark. samples: (extension, image bytes, content of .cls or .txt); without names: retrieval."""
    (folder / "test").mkdir(parents=True)
    if names:
        (folder / "classnames.txt").write_text("\n".join(names) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    else:
        (folder / "dataset_type.txt").write_text("retrieval\n")
    (folder / "test" / "nshards.txt").write_text(f"{SHARDS}\n")
    for shard in range(SHARDS):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for number, (extension, image, text) in list(enumerate(samples))[shard::SHARDS]:
                for suffix, data in (("cls" if names else "txt", text.encode()), (extension, image)):
                    info = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def linked(source: Path, folder: Path, templates: Sequence[str]) -> None:
    """The same images and classes with other templates."""
    folder.mkdir()
    (folder / "test").symlink_to(source / "test")
    (folder / "classnames.txt").symlink_to(source / "classnames.txt")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")


def photos(count: int, width: int, height: int) -> Iterable[bytes]:
    """JPEGs of photographs' size and detail."""
    from benchmarks.photos import photo

    for number in range(count):
        file = io.BytesIO()
        photo(number, width, height).save(file, "JPEG", quality=90)
        yield file.getvalue()


def make_data(folder: Path, images: Sequence[tuple[str, bytes]], labels: Sequence[int], names: Sequence[str]) -> None:
    """zeroshot: 1.6 prompts an image, as ImageNet. sets-0 … 2: other prompts. retrieval: 5 captions an image.

    variants-0 … 2: a third of the images each, with the prompts of zeroshot: as ImageNet, -V2 and -Sketch.
    """
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    templates = [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]
    per_class = max(1, min(80, round(1.6 * len(images) / len(names))))
    samples = [(extension, data, str(label)) for (extension, data), label in zip(images, labels)]
    write_dataset(folder / "zeroshot", samples, names, templates[:per_class])
    for number in range(3):
        linked(
            folder / "zeroshot",
            folder / f"sets-{number}",
            templates[20 * number : 20 * number + max(1, per_class // 4)],
        )
    for number in range(3):
        write_dataset(folder / f"variants-{number}", samples[number::3], names, templates[:per_class])
    captions = [
        "\n".join(f"a {names[label]} and a {WORDS[(number + k) % 16]} at place {number} {k}" for k in range(5))
        for number, label in enumerate(labels)
    ]
    write_dataset(folder / "retrieval", [(e, d, text) for (e, d), text in zip(images, captions)], [], [])


# The two sides, each in a process of its own ---------------------------------------------------------------------


def import_ours() -> None:
    import eval_zeroshot  # noqa: F401


def run_ours(case: str, data: Path, model: Path, output: Path, precision: str, workers: int) -> dict[str, float]:
    import eval_retrieval
    import eval_zeroshot

    flags = f"--checkpoint {model} --precision {precision} --workers {workers} --batch-size 64 --no-plots"
    names = datasets_of(case)
    found = {}
    for program, chosen, metric in (
        (eval_zeroshot, [name for name in names if name != "retrieval"], "top1"),
        (eval_retrieval, [name for name in names if name == "retrieval"], "image_to_text_R@5"),
    ):
        if chosen:
            own = [*flags.split(), "--output", str(output / metric)]
            assert program.main([*own, "--datasets", *(f"wds:{data / name}" for name in chosen)]) == 0
            entries = json.loads((output / metric / "results.json").read_text())["entries"]
            found |= {one["dataset"].removeprefix("wds/"): one["numbers"][metric] / 100 for one in entries}
    return found


def import_peer() -> None:
    import webdataset  # noqa: F401
    from clip_benchmark import cli  # noqa: F401


def run_peer(case: str, data: Path, model: Path, output: Path, precision: str, workers: int) -> dict[str, float]:
    from clip_benchmark import cli
    from clip_benchmark.metrics import zeroshot_classification

    def accuracy(output, target, topk=(1,)):
        """The package's own, which NumPy 2.4 refuses: float() of an array with one element."""
        best = output.topk(max(topk), 1).indices
        hits = best == target[:, None]
        return [float(hits[:, :k].any(1).float().mean()) for k in topk]

    zeroshot_classification.accuracy = accuracy
    output.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in datasets_of(case):
        task = "zeroshot_retrieval" if name == "retrieval" else "zeroshot_classification"
        words = ["clip_benchmark", "eval", "--dataset", f"wds/{name}", "--dataset_root", str(data / name)]
        words += ["--task", task, "--model", f"local-dir:{model}", "--pretrained", "none"]
        words += ["--num_workers", str(workers), "--batch_size", "64", "--output", str(output / f"{name}.json")]
        sys.argv = words + ["--no_amp"] * (precision == "fp32")
        cli.main()
        metrics = json.loads((output / f"{name}.json").read_text())["metrics"]
        found[name] = metrics["text_retrieval_recall@5" if name == "retrieval" else "acc1"]
    return found


def datasets_of(case: str) -> list[str]:
    if case == "all":
        return [name for one in CASES[:-1] for name in datasets_of(one)]
    several = {"three lists": "sets", "three datasets": "variants"}
    return [f"{several[case]}-{number}" for number in range(3)] if case in several else [case]


def times_decoded(case: str) -> int:
    """How often we decode every image; the lists of prompts share one pass with zeroshot."""
    return 3 if case == "all" else 1


def one_side(args: argparse.Namespace) -> dict[str, Any]:
    """In the child: imports, then runs, and reports wall and processor seconds of both (of worker processes too)."""
    importing, run = (import_ours, run_ours) if args.side == "ours" else (import_peer, run_peer)
    start, used = time.perf_counter(), sum(os.times()[:4])
    importing()
    middle, used_middle = time.perf_counter(), sum(os.times()[:4])
    arguments = (Path(args.data), Path(args.checkpoint), Path(args.output), args.precision[0], args.workers)
    found = run(args.case, *arguments)
    end, used_end = time.perf_counter(), sum(os.times()[:4])
    times = {
        "import": middle - start,
        "wall": end - middle,
        "import_cpu": used_middle - used,
        "cpu": used_end - used_middle,
    }
    return {"found": found, **times}


def measure(side: str, case: str, args: argparse.Namespace, data: Path, model: Path, precision: str) -> dict[str, Any]:
    """What the child reports."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--case", case, "--data", str(data)]
        words += ["--checkpoint", str(model), "--precision", precision, "--workers", str(args.workers)]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run([*words, "--output", folder], capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{side}, {case}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])


def decoding(data: Path, model: Path) -> float:
    """Processor seconds per image: reading, decoding and preprocessing, as both sides do it."""
    import torch

    from alip.checkpoint import load_model
    from alip.eval.datasets import open_classification

    torch.set_num_threads(1)  # as in a worker process
    images = open_classification(f"wds:{data / 'zeroshot'}").images
    transform = load_model(str(model)).preprocess(is_train=False)
    count = min(len(images), 100)
    start = time.process_time()
    for number in range(count):
        transform(images[number][0])
    return (time.process_time() - start) / count


def main() -> None:
    parser = command.CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="ViT-B-32", help="with random weights; tiny: two narrow layers")
    add("--checkpoint", help="weights in place of --model")
    add("--data", help="a folder of the demo (data/demo) in place of made-up photographs")
    add("--images", type=command.count, default=200)
    add("--classes", type=command.count, default=10)
    add("--size", type=command.count, nargs=2, default=[500, 375], metavar=("WIDTH", "HEIGHT"))
    add("--workers", type=command.count, default=2, help="worker processes of both sides")
    add("--rounds", type=command.count, default=2)
    add("--precision", nargs="+", choices=("fp32", "amp_bf16", "amp"), help="default: fp32, and amp_bf16 in hardware")
    add("--cases", nargs="+", default=CASES, choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    for hidden in ("--side", "--case", "--output"):
        add(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(one_side(args)))
        return
    with tempfile.TemporaryDirectory(prefix="eval-peer-") as folder:
        compare(args, Path(folder))


def prepare(args: argparse.Namespace, folder: Path) -> Path:
    """Model and data under the folder; the model's path."""
    import torch

    from alip.checkpoint import load_model
    from alip.checkpoint.export import export
    from alip.model import create_model

    torch.manual_seed(0)
    model = (
        load_model(args.checkpoint)
        if args.checkpoint
        else create_model({"model_cfg": TINY} if args.model == "tiny" else args.model)
    )
    export(model.eval(), "open_clip", folder / "model")
    if args.data:
        from alip.eval.datasets import open_classification

        dataset = open_classification("demo-style", Path(args.data).parent)
        paths, labels, names = dataset.images.paths, dataset.images.labels, dataset.classnames
        images = [(path.suffix[1:], path.read_bytes()) for path in paths]
    else:
        names = WORDS[: args.classes]
        images = [("jpg", data) for data in photos(args.images, *args.size)]
        labels = [number % len(names) for number in range(len(images))]
    make_data(folder / "data", images, labels, names)
    return folder / "model"


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Prints a row for each precision and case, as they are measured."""
    from comparisons import in_hardware, record

    from alip.eval.datasets import open_classification

    model, data = prepare(args, folder), folder / "data"
    per_image = decoding(data, model)
    images = len(open_classification(f"wds:{data / 'zeroshot'}").images)
    print(f"{images} images; reading, decoding and preprocessing: {1000 * per_image:.1f} ms of a core each")
    print("seconds without imports; processor seconds of all processes, which other load on the machine disturbs less")
    print(
        "| case | precision | ours, wall | peer, wall | ratio | ours, processor | peer, processor | ratio | decoding |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for precision in args.precision or in_hardware():
        for case in args.cases:
            times: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
            for _ in range(args.rounds):
                for side in times:
                    times[side].append(measure(side, case, args, data, model, precision))
            check(times["ours"][0]["found"], times["peer"][0]["found"], images, precision)
            for side, variant in (("ours", "ours"), ("peer", "clip-benchmark")):
                for name, kind in (("wall", "s"), ("cpu", "processor s")):
                    values = [one[name] for one in times[side]]
                    record(f"evaluation, {case}, {precision}, {kind}", variant, kind, values, more_is_better=False)
            wall, cpu = ([statistics.median(one[name] for one in times[s]) for s in times] for name in ("wall", "cpu"))
            cells = [f"{wall[0]:.1f}", f"{wall[1]:.1f}", f"{wall[1] / wall[0]:.2f}"]
            cells += [f"{cpu[0]:.1f}", f"{cpu[1]:.1f}", f"{cpu[1] / cpu[0]:.2f}"]
            print(
                f"| {case} | {precision} | "
                + " | ".join([*cells, f"{100 * times_decoded(case) * images * per_image / cpu[0]:.0f} %"])
                + " |",
                flush=True,
            )
    imports = [statistics.median(one["import_cpu"] for one in times[side]) for side in times]
    print(f"imports: ours {imports[0]:.1f}, clip-benchmark {imports[1]:.1f} processor seconds")


def check(ours: dict[str, float], peer: dict[str, float], images: int, precision: str) -> None:
    """Stops unless both found the same; in bf16 up to two images in a hundred, or in a small dataset, may differ."""
    for name, value in ours.items():
        allowed = 1e-6 if precision == "fp32" else max(0.02, 4.5 / images)
        if abs(value - peer[name]) > allowed:
            sys.exit(f"{name}: ours {value:.4f}, clip-benchmark {peer[name]:.4f}")


if __name__ == "__main__":
    run_command(main)
